"The claims: a verdict is read from the interval of all comparisons together, what is missing was not run, and unlike rows share no comparison."
import re

import numpy as np
import pandas as pd
import pytest

from gpvae.files import sha256, write_json
from gpvae.study import claims as module
from gpvae.study.claims import claims
from gpvae.study.spec import RunSpec, refit_of, settings_text
from gpvae.study.store import Store
from gpvae.study.tables import _setting_name, seed_difference
from test_store import made_up as made

RIVALS = ("vae", "sa-4", "iaf-4", "hf-4", "me-3", "rme-3")

def made_up(method="vae", seed=0, level=-90., **more):
    "A finished run with a name of its own."
    return made(method, seed, level, **dict(spec=sha256([method, seed, more])[:12]) | more)

def kept(folder, levels, seeds=3, **same):
    "A store with runs of methods at levels of IWAE, seeds 0.1 nats apart."
    store = Store(folder)
    store.keep([made_up(m, s, level + 0.1 * (s - (seeds - 1) / 2), **same) for m, level in levels.items() for s in range(seeds)])
    return store

def verdict_of(store, claim="likelihood"):
    found = claims(store)
    return found.verdict(claim, found.settings[0].name)

def levels(**changed): return dict.fromkeys(RIVALS, -90.) | {"gpvae": -88.} | {k.replace("_", "-"): v for k, v in changed.items()}

def test_a_claim_holds_above_all_rivals_and_fails_below_one(tmp_path):
    assert verdict_of(kept(tmp_path / "a", levels())) == "holds"
    assert verdict_of(kept(tmp_path / "b", levels(sa_4=-86.))) == "fails"
    assert verdict_of(kept(tmp_path / "c", levels(iaf_4=-88.))) == "not told apart"

def test_a_verdict_flips_where_the_interval_crosses_zero(tmp_path):
    c = claims(kept(tmp_path, levels())).comparisons[0]
    assert c.against == "`vae`" and c.of(0.95)[1] > 0 and c.verdict(0.95) == "holds"
    wide = next(1 - 10.**-i for i in range(2, 16) if c.of(1 - 10.**-i)[1] < 0)
    assert c.verdict(wide) == "not told apart" and "shows it" in c.falsifier(wide)
    moved = lambda by: c._replace(of=lambda level: tuple(v + by for v in c.of(level)))
    low, high = c.of(0.95)[1:]
    assert moved(-low - 1e-6).verdict(0.95) == "not told apart" and moved(-low + 1e-6).verdict(0.95) == "holds"
    assert moved(-high - 1e-6).verdict(0.95) == "fails" and c.falsifier(0.95) == f"{low:.2f} nats less"

def test_the_interval_is_the_one_of_the_tables(tmp_path):
    store = kept(tmp_path, levels())
    rows, c = store.runs(), claims(store).comparisons[0]
    assert c.of(0.95) == pytest.approx(seed_difference(rows, store.images(rows), "gpvae", "vae")) and c.basis == f"3 seeds, {len(made_up().per_image['iwae'])} images"
    assert c.of(0.999)[2] - c.of(0.999)[1] > c.of(0.95)[2] - c.of(0.95)[1]

def test_all_comparisons_hold_together(tmp_path):
    found = claims(kept(tmp_path, levels()))
    assert found.measured == len(found.details) == 6 and found.level == pytest.approx(1 - 0.05 / 6) and "makes 6 comparisons" in found.counted

def test_what_was_not_run_is_said_to_be_so(tmp_path):
    found = claims(Store(tmp_path / "empty"))
    assert found.sentences.count("not run") == 3 and not len(found.table) and not len(found.details) and not len(found.one_pass)
    store = kept(tmp_path / "a", {"vae": -90., "sa-4": -89.})
    for claim in ("likelihood", "speed", "difficulty"): assert verdict_of(store, claim) == "not run"
    store = kept(tmp_path / "b", {"vae": -90., "gpvae": -88.})
    assert verdict_of(store) == "not run" and "above `vae` +2.00" in claims(store).table.iloc[0, 0] and "not run against semi-amortized, flows, mixtures" in claims(store).table.iloc[0, 0]

def test_one_seed_decides_nothing(tmp_path):
    store = kept(tmp_path, levels(), seeds=1)
    c = claims(store).comparisons[0]
    assert verdict_of(store) == "not told apart" and c.of(0.95)[0] == pytest.approx(2., abs=0.02) and not c.decides and c.falsifier(0.95) == "more seeds"

@pytest.mark.parametrize("column, value", [("n_train", 5), ("settings", "lr=0.1"), ("checksum", "def"), ("budget", "smoke"), ("binarisation", "none")])
def test_unlike_rows_share_no_comparison(tmp_path, column, value):
    "The rival with other rows was not run in this setting, however many seeds it has."
    own = {m: v for m, v in levels().items() if m != "sa-4"}
    store = kept(tmp_path, own)
    store.keep([made_up("sa-4", s, -60., **{column: value}) for s in range(3)])
    found = claims(store)
    assert len(found.settings) == 1 and found.settings[0].runs["method"].nunique() == 6
    assert "not run against semi-amortized" in found.table.iloc[0, 0] and "sa-4" not in found.table.iloc[0, 0]

@pytest.mark.parametrize("column, value", [("dataset", "other"), ("likelihood", "gaussian"), ("z_dim", 7)])
def test_each_setting_has_its_line(tmp_path, column, value):
    store = kept(tmp_path, levels())
    store.keep([made_up(m, s, -60., **{column: value}) for m in ("vae", "gpvae") for s in range(3)])
    assert len(claims(store).table) == 2

@pytest.mark.parametrize("changed", ["natural_step=0.5", "inflation=1.4", "decoder=vae dreams=0.5", "batch_size=64 heat=4.0"])
def test_models_judged_otherwise_are_no_rows_of_a_claim(tmp_path, changed):
    store = kept(tmp_path, {"vae": -90., "gpvae": -88.})
    store.keep([made_up(m, s, -60., settings=changed) for m in (*RIVALS, "gpvae") for s in range(4)])
    assert claims(store).settings[0].runs["settings"].tolist() == [""] * 6

def test_a_family_is_its_methods_with_the_most_seeds(tmp_path):
    store = kept(tmp_path, levels())
    store.keep([made_up(m, 0, -80.) for m in ("hf-1", "sa-8", "vae-dropout")])
    assert [c.against for c in claims(store).comparisons if c.claim == "likelihood"] == [f"`{m}`" for m in RIVALS]

def test_speed_is_a_ratio_in_turns_or_over_seeds(tmp_path):
    store = kept(tmp_path, levels(), z_dim=20, dataset="static_mnist")
    names = {(r.method, r.seed): r.spec for r in store.runs().itertuples()}
    rows = [made_up(m, s, -90., z_dim=20, dataset="static_mnist", spec=names[m, s], infer_ms_batch=ms * (1 + s / 100)) for m, ms in (("gpvae", 2.), ("sa-4", 10.)) for s in range(3)]
    store.keep(rows)
    assert "`sa-4` takes 5.0 ×" in claims(store).table.iloc[0, 1] and verdict_of(store, "speed") == "holds"
    turns = {"gpvae": [1., 1.1, 1.], "sa-4": [0.5, 0.56, 0.5]}
    write_json(tmp_path / "benchmarks.json", {"pages": {"turns": {_setting_name(dict(store.runs().iloc[0])): turns}}})
    assert "`sa-4` takes 0.5 ×" in claims(store).table.iloc[0, 1] and verdict_of(store, "speed") == "fails"

def test_speed_is_a_ratio_in_turns_of_the_same_setting(tmp_path):
    store, turns = kept(tmp_path, levels()), {"gpvae": [1., 1.1, 1.], "sa-4": [7., 7.7, 7.1]}
    def names(z): write_json(tmp_path / "benchmarks.json", {"pages": {"turns": {_setting_name(dict(store.runs().iloc[0]) | {"z_dim": z}): turns}}})
    z = store.runs()["z_dim"].iloc[0]
    names(z + 1)
    assert verdict_of(store, "speed") == "not run"
    names(z)
    assert "`sa-4` takes 7.0 ×" in claims(store).table.iloc[0, 1] and verdict_of(store, "speed") == "holds"

def gaps_of(spec, doubt, gap, free):
    "Measured gaps of a run whose doubt, gap and free score are given; validation images alike."
    columns = {"elbo": -gap, "diagonal": 0 * gap, "diagonal_converged": np.ones(len(gap), bool), "score_f": doubt, "score_f_relative": doubt, "score_g": doubt, "score_kl": free}
    return {f"{spec}_{split}_{name}": v.astype(np.float32) if v.dtype != bool else v for split in ("test", "valid") for name, v in columns.items()}

@pytest.mark.parametrize("noise, verdict", [(0.1, "holds"), (-0.1, "fails"), (np.inf, "not told apart")])
def test_difficulty_is_a_rank_correlation(tmp_path, noise, verdict):
    store, rng = kept(tmp_path, levels()), np.random.default_rng(0)
    gap = rng.exponential(size=200)
    doubt = rng.random(200) if np.isinf(noise) else 2 + np.sign(noise) * gap + abs(noise) * rng.normal(size=200)
    row = store.runs().query("method == 'gpvae' and seed == 0").iloc[0].to_dict()
    store.keep_gaps(row, gaps_of(row["spec"], doubt, gap, gap + 0.01 * rng.random(200)))
    found = claims(store)
    rank, margin = [c for c in found.comparisons if c.claim == "difficulty"]
    assert verdict_of(store, "difficulty") == verdict and not margin.claimed and margin.against == "`kl`" and margin.verdict(found.level) == "fails"
    assert "the gap 1" in found.identity or "the gap 0.9" in found.identity

def test_other_encoders_are_found_by_their_specifications(tmp_path):
    "A refit on the VAE's decoder is paired by seed; a step of another length is another thing."
    store = kept(tmp_path, {"vae": -90., "gpvae": -90.}, binarisation="static")
    vae = module._vae_of(claims(store).settings[0])
    refit = settings_text(refit_of(vae).settings)
    store.keep([made_up("vae", s, -89. + 0.1 * (s - 1), settings=refit, binarisation="static") for s in range(3)])
    store.keep([made_up("vae", s, -50., settings="natural_step=0.7", binarisation="static") for s in range(3)])
    table = claims(store).one_pass.droplevel(0)
    assert list(table.index) == ["VAE, refitted", "GP encoder"] and re.fullmatch(r"\+1\.00 \[\+[01]\.\d\d, \+1\.\d\d\]", table.loc["VAE, refitted", "IWAE-100 gained"])
    assert isinstance(vae, RunSpec) and vae.settings == ()

def test_the_committed_page_says_what_the_files_say():
    from gpvae.study.store import checkout
    folder = checkout() / "nbs" / "results"
    path, found = folder / "claims.ipynb", claims(Store(folder))
    text = path.read_text(encoding="utf-8").replace('\\"', '"')
    for line in found.sentences.splitlines(): assert line in text
    for cell in pd.concat([found.table.stack(), found.details.stack()]).astype(str): assert cell in text
