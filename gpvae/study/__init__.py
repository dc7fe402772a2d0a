"""The study wing: it trains, judges and compares the methods of the library, and writes pages."""
from pathlib import Path

import gpvae

OWN_PACKAGE = (  # code by which a new process imports this gpvae, and no module of the folder that it lies in
    "import importlib.util as u, sys; "
    f"spec = u.spec_from_file_location('gpvae', {str(Path(gpvae.__file__).absolute())!r}); "
    "sys.modules['gpvae'] = module = u.module_from_spec(spec); spec.loader.exec_module(module)")
