"Packaging, read from settings.ini; the `nbdev` entry point lets documentation of other projects link here."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    packages=find_packages(include=["gpvae", "gpvae.*"]), package_data={"gpvae.study": ["*.mplstyle", "*.html", "Snakefile"]}, include_package_data=True,
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(),
    extras_require={"dev": f"{cfg['dev_requirements']} {cfg['cluster_requirements']}".split(),
                    "cluster": cfg["cluster_requirements"].split(), "bench": cfg["bench_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Programming Language :: Python :: 3.11",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    zip_safe=False,
)
