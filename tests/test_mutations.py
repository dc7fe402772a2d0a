"The oracles can fail: each of these one-line mistakes in the package makes the named test fail."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

class Mutation(NamedTuple):
    "One line of the package changed, and the test that must notice."
    module: str
    right: str
    wrong: str
    test: str

SEEDED = "generator = torch.Generator(x.device).manual_seed(seed)"
MUTATIONS = {
    # posteriors
    "KL with the wrong sign": Mutation("posteriors", "return 0.5 * (mu.square()", "return -0.5 * (mu.square()", "oracles::test_elbo_is_the_likelihood_less_the_gap"),
    "no log-determinant in the density of samples": Mutation("posteriors", "log_normal(eps) - self.log_sigma.sum(-1)", "log_normal(eps)", "oracles::test_exact_diagonal_posterior_has_constant_weights"),
    "no log-determinant in the density": Mutation("posteriors", "- log_det - 0.5", "- 0.5", "oracles::test_exact_diagonal_posterior_has_constant_weights"),
    "no constant in the density": Mutation("posteriors", " - 0.5 * z.shape[-1] * math.log(2 * math.pi)", "", "oracles::test_exact_posterior_has_constant_weights"),
    "mixture without the weights of its components": Mutation("posteriors", "self.log_pi + log_normal(", "log_normal(", "oracles::test_mixture_bound_is_above_its_components"),
    "components drawn alike": Mutation("posteriors", "log_pi.exp().cumsum(0)", "(0 * log_pi).softmax(0).cumsum(0)", "oracles::test_mixture_density_and_samples"),
    "no log-determinant in the full density": Mutation("posteriors", "log_normal(eps) - self.log_det()\n\n    def kl(self)", "log_normal(eps)\n\n    def kl(self)", "oracles::test_full_gaussian_as_the_exact_posterior"),
    "full covariance transposed": Mutation("posteriors", '"bij,sbj->sbi"', '"bji,sbj->sbi"', "oracles::test_full_gaussian_as_the_exact_posterior"),
    "strata without their weights": Mutation("posteriors", "return z, self.log_prob(z), pi / S", "return z, self.log_prob(z), torch.full_like(pi, 1 / len(pi))", "oracles::test_strata_give_the_mixture_bound"),
    "inflation of the standard deviation": Mutation("posteriors", "DiagonalGaussian(self.mu, self.log_sigma + 0.5 * math.log(factor))", "DiagonalGaussian(self.mu, self.log_sigma + math.log(factor))",
                                                    "oracles::test_inflation_is_of_the_variance"),
    # likelihoods and the bound
    "mean over binary pixels": Mutation("likelihoods", "value=-1).sum(-1)", "value=-1).mean(-1)", "oracles::test_bernoulli_sums_over_pixels"),
    "mean over grey pixels": Mutation("likelihoods", ".square().sum(-1) +", ".square().mean(-1) +", "oracles::test_exact_posterior_has_constant_weights"),
    "no scale in the normalisation": Mutation("likelihoods", "(2 * s.log() + math.log(2 * math.pi)).sum()", "(0 * s + math.log(2 * math.pi)).sum()", "oracles::test_exact_posterior_has_constant_weights"),
    "no prior in the joint": Mutation("vae", "return self.log_px_z(x, z) + log_normal(z)", "return self.log_px_z(x, z)", "oracles::test_exact_posterior_has_constant_weights"),
    "KL added": Mutation("vae", "self.log_px_z - beta * self.kl", "self.log_px_z + beta * self.kl", "oracles::test_elbo_is_the_likelihood_less_the_gap"),
    # random functions
    "no 1/N before the weight KL": Mutation("gp_encoder", "/ (self.temperature * n_train)", "/ self.temperature", "oracles::test_objective_divides_the_weight_kl"),
    "temperature upside down": Mutation("gp_encoder", "self.weight_kl() / (self.temperature * n_train)", "self.weight_kl() * self.temperature / n_train", "oracles::test_objective_divides_the_weight_kl"),
    "log-determinant with the wrong sign in the weight KL": Mutation("gp_encoder", "- self.cov.log_det()).sum()", "+ self.cov.log_det()).sum()", "oracles::test_weight_kl_is_that_of_gaussians"),
    "no trace in the weight KL": Mutation("gp_encoder", "square = self.cov.trace() + self.mean", "square = self.mean", "oracles::test_weight_kl_is_that_of_gaussians"),
    "no prior scale in the weight KL": Mutation("gp_encoder", "2 * H * self.log_prior - ", "- ", "oracles::test_weight_kl_is_that_of_gaussians"),
    "marginal variance without that of g": Mutation("gp_encoder", "torch.exp(2 * self.g_mean + 2 * self.g_var)", "torch.exp(2 * self.g_mean)", "oracles::test_marginal_moments_are_those_of_the_mixture"),
    "marginal variance with half of that of g": Mutation("gp_encoder", "torch.exp(2 * self.g_mean + 2 * self.g_var)", "torch.exp(2 * self.g_mean + self.g_var)", "oracles::test_marginal_moments_are_those_of_the_mixture"),
    "marginal variance without that of f": Mutation("gp_encoder", "return self.f_var + torch.exp(", "return torch.exp(", "oracles::test_marginal_moments_are_those_of_the_mixture"),
    "mean detached from the trunk": Mutation("gp_encoder", "b + psi @ self.W.mean.T", "b + v @ self.W.mean.T", "oracles::test_the_mean_trains_the_trunk_and_the_variance_does_not"),
    "variance attached to the trunk": Mutation("gp_encoder", "v = psi.detach() if", "v = psi if", "oracles::test_the_mean_trains_the_trunk_and_the_variance_does_not"),
    "variance in the place of the standard deviation": Mutation("gp_encoder", "var.clamp(min=1e-30).sqrt()", "var.clamp(min=1e-30)", "oracles::test_training_noise_has_the_variance_of_the_functions"),
    "Cholesky factor transposed": Mutation("gp_encoder", "(psi @ self.cholesky()).square()", "(psi @ self.cholesky().mT).square()", "oracles::test_variance_agrees_with_samples_and_covariance"),
    "mixture that does not sum to one": Mutation("gp_encoder", "-math.log(self.n_mixture)", "0.", "oracles::test_mixture_components_are_draws_of_the_functions"),
    # flows
    "no log-determinant of the gate": Mutation("baselines/iaf", "t.sigmoid()), F.logsigmoid(t)", "t.sigmoid()), 0 * t", "flows::test_density_of_a_sample_is_that_of_the_jacobian"),
    "log-determinant of the flow added": Mutation("baselines/iaf", "return z, log_q - log_s.sum(-1)", "return z, log_q + log_s.sum(-1)", "flows::test_density_of_a_sample_is_that_of_the_jacobian"),
    "log-determinant added in the inverse": Mutation("baselines/iaf", "self.base.log_prob(z) - log_s.sum(-1)", "self.base.log_prob(z) + log_s.sum(-1)", "flows::test_density_of_a_sample_is_that_of_the_jacobian"),
    "order never reversed": Mutation("baselines/iaf", "t % 2 == 1", "t % 2 == 2", "flows::test_the_order_is_reversed_from_step_to_step"),
    "a latent that sees itself": Mutation("baselines/iaf", "return position < degree[:, None]", "return position <= degree[:, None]", "flows::test_a_path_leads_from_every_earlier_latent_and_from_no_other"),
    "a latent that sees itself, by the Jacobian": Mutation("baselines/iaf", "return position < degree[:, None]", "return position <= degree[:, None]", "flows::test_jacobian_of_a_step_is_triangular_in_its_order"),
    "no mirror images in the mean": Mutation("baselines/iaf", "torch.cat([eps, -eps])", "torch.cat([eps, eps])", "flows::test_mean_of_many_pairs_and_of_an_affine_flow"),
    "shadow without its gates": Mutation("baselines/iaf", "gaussian_kl(c[0], log_sigma + log_a[0])", "gaussian_kl(c[0], log_sigma)", "flows::test_estimate_of_the_kl"),
    "correction of the shadow with the wrong sign": Mutation("baselines/iaf", "remainder.mean(0)", "(-remainder).mean(0)", "flows::test_estimate_of_the_kl"),
    "reflection without its 2": Mutation("baselines/householder", "return z - 2 * (u * z)", "return z - (u * z)", "flows::test_the_map_is_orthogonal_and_undone"),
    "vectors without their length": Mutation("baselines/householder", "v / norm.clamp(min=tiny)", "v", "flows::test_the_map_is_orthogonal_and_undone"),
    "reflections undone in the wrong order": Mutation("baselines/householder", "for u in self.u.flip(0)", "for u in self.u", "flows::test_the_map_is_orthogonal_and_undone"),
    "mean not reflected": Mutation("baselines/householder", "return self.turn(self.base.mu)", "return self.base.mu", "flows::test_it_is_the_full_gaussian"),
    # importance sampling
    "no log k over chunks": Mutation("iwae", "self.log_sum - math.log(self.k)", "self.log_sum", "oracles::test_iwae_reaches_the_likelihood"),
    "no log k": Mutation("iwae", " - math.log(len(log_w))", "", "oracles::test_direct_sums"),
    "effective sample size not squared": Mutation("iwae", "torch.exp(2 * self.log_sum - self.log_square)", "torch.exp(self.log_sum - self.log_square)", "oracles::test_running_weights_equal_the_direct_sums"),
    "log q added": Mutation("iwae", "torch.cat(log_joint) - log_qz_x", "torch.cat(log_joint) + log_qz_x", "oracles::test_exact_diagonal_posterior_has_constant_weights"),
    "last batch dropped": Mutation("iwae", "for part in x.split(batch_size):", "for part in x[:len(x) // batch_size * batch_size].split(batch_size):", "oracles::test_evaluation_drops_nothing_and_keeps_the_order"),
    "new noise for every evaluation": Mutation("iwae", SEEDED, "generator = None", "oracles::test_evaluation_is_seeded"),
    # training
    "no warm-up of the KL": Mutation("vae", "yield terms.elbo(beta), terms", "yield terms.elbo(), terms", "train::test_step_is_the_gradient_of_the_objective"),
    "no weight KL in the loss": Mutation("train", "loss = -objective.mean() + weight_kl", "loss = -objective.mean() + 0 * weight_kl", "train::test_step_is_the_gradient_of_the_objective"),
    "decay of everything": Mutation("train", "some = {id(p) for p in decayed(model)}", "some = {id(p) for p in model.parameters()}", "train::test_weight_decay_shrinks_the_layers_and_nothing_else"),
    "gradient not clipped": Mutation("train", "clip_grad_norm_(model.parameters(), config.max_norm)", 'clip_grad_norm_(model.parameters(), float("inf"))', "train::test_gradient_is_clipped_and_its_norm_is_recorded"),
    "batch size in the place of N": Mutation("train", "beta(step, len(batches), config), n, config)", "beta(step, len(batches), config), len(batch), config)", "train::test_the_loop_follows_the_schedules"),
    "worst epoch chosen": Mutation("train", "return max(range(", "return min(range(", "train::test_best_epoch_has_the_highest_validation_bound_and_its_weights_are_returned"),
    "last epoch returned": Mutation("train", "model.load_state_dict(trainer.best)", "pass", "train::test_best_epoch_has_the_highest_validation_bound_and_its_weights_are_returned"),
    "new noise for every validation": Mutation("train", SEEDED, "generator = None", "train::test_validation_uses_one_noise_and_leaves_the_mode_alone"),
    "no warm-up of the randomness": Mutation("train", "ramp(step, config.noise_warmup * len(batches))", "1.", "train::test_the_loop_warms_the_randomness_up"),
    "optimiser forgotten on resuming": Mutation("train", "        restore_optimizer(self.optimizer, tensors)", "        pass", "train::test_resumed_training_ends_with_the_same_bits"),
    "noise that depends on the past": Mutation("train", "    torch.manual_seed(epoch_seed(config.seed, epoch))\n", "", "train::test_resumed_training_ends_with_the_same_bits"),
}

# --- a process that has imported what is slow, and runs each test in a fork of itself ------------------------------------------------------------

def serve():
    "For every line of JSON with a folder and tests: pytest in a fork, answered by its exit status and output."
    import beartype, jaxtyping, numpy, PIL.Image, platformdirs, safetensors.torch, torch, torch._dynamo, tqdm # noqa: F401
    sys.dont_write_bytecode = True # a cached module could be that of another mutation
    for line in sys.stdin:
        job = json.loads(line)
        log, pid = Path(job["folder"]) / "log", os.fork()
        if pid == 0: work(job, log)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status, "output": log.read_text()}), flush=True)

def work(job, log):
    "In the fork: run the tests of the copy against the package of the copy."
    with open(log, "w") as f: os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
    os.chdir(job["folder"]); sys.path.insert(0, job["folder"])
    status = int(pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *job["tests"]]))
    import gpvae
    print(f"tested {gpvae.__file__}", flush=True)
    os._exit(status)

class Copy:
    "A copy of the package and its tests, in which lines are changed."
    def __init__(self, folder):
        import gpvae
        self.folder, skip = folder, shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(gpvae.__file__).parent, folder / "gpvae", ignore=skip)
        shutil.copytree(Path(__file__).parent, folder / "tests", ignore=skip)
        env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self.server = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(self, tests):
        "Exit status and output of pytest."
        nodes = [f"tests/test_{t}".replace("::", ".py::") for t in tests]
        self.server.stdin.write(json.dumps({"folder": str(self.folder), "tests": nodes}) + "\n"); self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        assert f"tested {self.folder / 'gpvae'}" in answer["output"], answer["output"]
        return answer["status"], answer["output"]

@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    c = Copy(tmp_path_factory.mktemp("mutated"))
    yield c
    c.server.stdin.close(); c.server.wait()

def test_without_a_mutation_all_pass(copied):
    status, output = copied.run(sorted({m.test for m in MUTATIONS.values()}))
    assert status == 0, output

@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_noticed(copied, name):
    m = MUTATIONS[name]
    path = copied.folder / "gpvae" / f"{m.module}.py"
    original = path.read_text()
    assert original.count(m.right) == 1, f"{m.right!r} occurs {original.count(m.right)} times in {m.module}.py"
    path.write_text(original.replace(m.right, m.wrong))
    try: status, output = copied.run([m.test])
    finally: path.write_text(original)
    assert status == 1, f"the mutation {name!r} was not noticed, or broke more than a test:\n{output}"
    assert re.search(r"^E +(AssertionError|assert )", output, re.M), f"not an assertion:\n{output}"

if __name__ == "__main__": serve()
