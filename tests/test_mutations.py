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
    "no 1/N before the weight KL": Mutation("gp_encoder", "self.weight_kl() / n_train", "self.weight_kl()", "oracles::test_objective_divides_the_weight_kl"),
    "temperature upside down": Mutation("gp_encoder", "for w in self.white)) / self.temperature", "for w in self.white)) * self.temperature", "oracles::test_objective_divides_the_weight_kl"),
    "log-determinant with the wrong sign in the weight KL": Mutation("gp_encoder", "- self.cov.log_det()).sum()", "+ self.cov.log_det()).sum()", "oracles::test_weight_kl_is_that_of_gaussians"),
    "no trace in the weight KL": Mutation("gp_encoder", "square = self.cov.trace() + self.mean", "square = self.mean", "oracles::test_weight_kl_is_that_of_gaussians"),
    "no prior scale in the weight KL": Mutation("gp_encoder", "2 * H * self.log_prior - ", "- ", "oracles::test_weight_kl_is_that_of_gaussians"),
    "marginal variance without that of g": Mutation("gp_encoder", "torch.exp(2 * (self.g_mean + self.g_var))", "torch.exp(2 * self.g_mean)", "oracles::test_marginal_moments_are_those_of_the_mixture"),
    "marginal variance with half of that of g": Mutation("gp_encoder", "torch.exp(2 * (self.g_mean + self.g_var))", "torch.exp(2 * self.g_mean + self.g_var)", "oracles::test_marginal_moments_are_those_of_the_mixture"),
    "marginal variance without that of f": Mutation("gp_encoder", "return self.f_var + torch.exp(", "return torch.exp(", "oracles::test_marginal_moments_are_those_of_the_mixture"),
    "mean detached from the trunk": Mutation("gp_encoder", "b + psi @ e.W.mean.T", "b + v @ e.W.mean.T", "oracles::test_the_mean_trains_the_trunk_and_the_variance_does_not"),
    "variance attached to the trunk": Mutation("gp_encoder", "v = psi.detach() if", "v = psi if", "oracles::test_the_mean_trains_the_trunk_and_the_variance_does_not"),
    "variance in the place of the standard deviation": Mutation("gp_encoder", "var.clamp(min=1e-30).sqrt()", "var.clamp(min=1e-30)", "oracles::test_training_noise_has_the_variance_of_the_functions"),
    "Cholesky factor transposed": Mutation("gp_encoder", "(psi @ self.cholesky()).square()", "(psi @ self.cholesky().mT).square()", "oracles::test_variance_agrees_with_samples_and_covariance"),
    "folded with the shift added": Mutation("gp_encoder", "m, alpha=-1)", "m)", "oracles::test_folding_changes_no_function"),
    "folded variance with the scale once": Mutation("gp_encoder", "(log_sd.exp() * s).square()", "log_sd.exp().square() * s", "oracles::test_folding_changes_no_function"),
    "folded variance attached to the trunk": Mutation("gp_encoder", "Ms, v = M * s, phi.detach() if", "Ms, v = M * s, phi if", "oracles::test_folding_changes_no_function"),
    "scale not settled after an update": Mutation("gp_encoder", "corrects the start at zero\n        self.settle()", "corrects the start at zero", "oracles::test_the_scale_follows_the_running_moments"),
    "scale not settled after loading": Mutation("gp_encoder", "        self.register_load_state_dict_post_hook(Standardised.settle)\n", "", "oracles::test_the_scale_follows_the_running_moments"),
    "no capacitance in the low-rank log-determinant": Mutation("gp_encoder", "torch.logdet(self.B.mT @ self.B + torch.eye(self.B.shape[-1]).to(self.B))", "torch.logdet(torch.eye(self.B.shape[-1]).to(self.B))", "oracles::test_weight_kl_is_that_of_gaussians"),
    "root of the low-rank part without its square root": Mutation("gp_encoder", "(1 + (1 + lam.clamp(min=0)).sqrt())", "(2 + lam.clamp(min=0))", "oracles::test_variance_agrees_with_samples_and_covariance"),
    "white noise divided among the images": Mutation("gp_encoder", "sum(w.kl() for w in self.white)", "sum(w.kl() for w in self.white) / n_train", "oracles::test_white_noise_is_paid_once_an_image_and_widens_every_image_alike"),
    "white noise's standard deviation for its variance": Mutation("gp_encoder", "return torch.exp(2 * self.log_scale)\n    def kl", "return torch.exp(self.log_scale)\n    def kl", "oracles::test_white_noise_is_paid_once_an_image_and_widens_every_image_alike"),
    "all samples from the first draw": Mutation("gp_encoder", "torch.arange(S) % len(self.mu)", "torch.arange(S) * 0", "oracles::test_several_draws_average_the_bound_of_one"),
    "the features of the kernel are those of the mean": Mutation("gp_encoder", "self.kernel_trunk(x) if self.kernel_trunk else phi", "phi", "oracles::test_features_of_their_own_take_the_gradient_of_the_variance"),
    "a warm start that starts cold": Mutation("run", "if s.warm_start and not path.exists(): warm_start(", "if s.warm_start and path.exists(): warm_start(", "run::test_warm_start_begins_with_the_other_runs_weights"),
    "mixture that does not sum to one": Mutation("gp_encoder", "-math.log(e.n_mixture)", "0.", "oracles::test_mixture_components_are_draws_of_the_functions"),
    # variational Laplace
    "no prior in the precision": Mutation("baselines/vlae", "return eye + Gram.apply(", "return 1e-9 * eye + Gram.apply(", "vlae::test_precision_is_the_curvature_of_the_joint"),
    "no prior in the gradient": Mutation("baselines/vlae", "[:, 0]) - mu - v", "[:, 0]) - v", "vlae::test_step_is_the_newton_step"),
    "no prior where the solve is differentiated": Mutation("baselines/vlae", "(local.pull(score) - mu)[..., None]", "local.pull(score)[..., None]", "vlae::test_gradient_through_the_solve_is_autograds"),
    "no gradient through the solve": Mutation("baselines/vlae", "return v + torch", "return v + 0 * torch", "vlae::test_gradient_through_the_solve_is_autograds"),
    "all units on in the Jacobian": Mutation("baselines/vlae", "else v * next(masks)[:, None]", "else v * torch.ones_like(next(masks))[:, None]", "vlae::test_jacobian_is_autograds"),
    "all units on in its transpose": Mutation("baselines/vlae", "else r * next(masks)", "else r * torch.ones_like(next(masks))", "vlae::test_jacobian_is_autograds"),
    "masks of the transpose not reversed": Mutation("baselines/vlae", "iter(self.masks[::-1])", "iter([m[:, :1].expand_as(n) for m, n in zip(self.masks, self.masks[::-1])])", "vlae::test_jacobian_is_autograds"),
    "step downhill": Mutation("baselines/vlae", "mu = mu + self.damping", "mu = mu - self.damping", "vlae::test_exact_on_a_linear_gaussian_decoder"),
    "damping that does not decay": Mutation("baselines/vlae", "self.damping / (t + 1)", "self.damping", "vlae::test_damping_decays"),
    "precision in the place of the covariance": Mutation("baselines/vlae", "return torch.linalg.solve_triangular(C.mT, eye, upper=True).flip(-2, -1)", "return torch.linalg.cholesky(precision)",
                                                         "vlae::test_exact_on_a_linear_gaussian_decoder"),
    "covariance without the curvature": Mutation("baselines/vlae", "precision(local, log_joint.model.likelihood.curvature(local.eta))", "precision(local, torch.ones_like(local.eta))",
                                                 "vlae::test_covariance_belongs_to_the_last_mean"),
    "half the derivative of the Gram matrix": Mutation("baselines/vlae", "half = (grad + grad.mT) @ J", "half = grad @ J", "vlae::test_gram_states_its_derivative"),
    "curvature of the scale, not of the variance": Mutation("likelihoods", "self.scale.pow(-2)", "self.scale.pow(-1)", "vlae::test_score_and_curvature_are_derivatives"),
    "curvature of one side of the logistic": Mutation("likelihoods", "torch.sigmoid(eta) * torch.sigmoid(-eta)", "torch.sigmoid(eta)", "vlae::test_score_and_curvature_are_derivatives"),
    "score downhill": Mutation("likelihoods", "return x - torch.sigmoid(eta)", "return torch.sigmoid(eta) - x", "vlae::test_score_and_curvature_are_derivatives"),
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
    # annealed importance sampling
    "momentum against the gradient": Mutation("ais", "v + 0.5 * step * state.grad(beta)", "v - 0.5 * step * state.grad(beta)", "ais::test_leapfrog_keeps_the_energy_to_second_order"),
    "no second half step": Mutation("ais", "value=last)\n        v = kick(state, v)\n", "value=last)\n", "ais::test_leapfrog_runs_back"),
    "score left out": Mutation("ais", "slope(y.detach())", "torch.ones_like(y)", "ais::test_gradients_alone_are_those_of_the_value"),
    "every proposal taken": Mutation("ais", "refused = torch.special.log_ndtr(choice) >= log_accept", "refused = torch.zeros_like(choice, dtype=torch.bool)", "ais::test_transition_leaves_the_posterior_alone"),
    "a NaN refused": Mutation("ais", "refused = torch.special.log_ndtr(choice) >= log_accept", "refused = ~(torch.special.log_ndtr(choice) < log_accept)", "ais::test_nan_that_only_a_trajectory_meets_is_no_rejection"),
    "weight counted after the transition": Mutation("ais", "counted = state if reverse else before", "counted = state", "ais::test_the_mean_weight_is_the_likelihood"),
    "no log of the number of chains": Mutation("ais", "return LogLikelihood.of(iwae(log_w), ", "return LogLikelihood.of(torch.logsumexp(log_w, 0), ", "ais::test_from_the_exact_posterior_every_weight_is_exact"),
    "reverse bound with the forward sign": Mutation("ais", "-iwae(-log_w), ess(-log_w)", "iwae(log_w), ess(log_w)", "ais::test_sides_are_ordered_and_both_are_exact_on_average"),
    "noise by the place in the chunk": Mutation("ais", "for i in self.index]", "for i in range(len(self.index))]", "ais::test_results_do_not_depend_on_chunks"),
    # semi-amortized steps
    "inner step downhill": Mutation("baselines/semi_amortized", "q.mu + step_size * velocity[0], q.log_sigma + step_size", "q.mu - step_size * velocity[0], q.log_sigma - step_size", "semi_amortized::test_the_bound_rises_with_every_step"),
    "gradient of the batch mean": Mutation("baselines/semi_amortized", "torch.autograd.grad(bound.sum(), (moved", "torch.autograd.grad(bound.mean(), (moved", "semi_amortized::test_a_step_does_not_depend_on_the_batch"),
    "squared norm clipped": Mutation("baselines/semi_amortized", ".add(1e-12).sqrt()", ".add(1e-12)", "semi_amortized::test_the_clip_holds_the_norm_of_each_image"),
    "norm of the batch clipped": Mutation("baselines/semi_amortized", ".square().sum(-1, keepdim=True).add", ".square().sum().expand(len(w_mu), 1).add", "semi_amortized::test_a_step_does_not_depend_on_the_batch"),
    "steps detached": Mutation("baselines/semi_amortized", "create_graph=second_order)", "create_graph=False)", "semi_amortized::test_training_differentiates_through_the_steps"),
    "score in the path gradient": Mutation("baselines/semi_amortized", "q if path else None)", "moved if path else None)", "semi_amortized::test_path_gradient_is_zero_at_the_posterior"),
    "natural gradient with half its scale": Mutation("baselines/semi_amortized", "momentum * v + s * d for", "momentum * v + d for", "semi_amortized::test_a_step_is_the_gradient_in_its_units"),
    "no momentum": Mutation("baselines/semi_amortized", "momentum * v + s * d for", "s * d for", "semi_amortized::test_a_step_is_the_gradient_in_its_units"),
    "steps of an evaluation with any noise": Mutation("baselines/semi_amortized", "else (1, torch.Generator(q.mu.device).manual_seed(SEED))", "else (1, None)", "semi_amortized::test_evaluation_has_its_own_noise"),
    "one noise for all training images": Mutation("baselines/semi_amortized", "B, generator = (len(q.mu), None)", "B, generator = (1, None)", "semi_amortized::test_training_noise_is_of_each_image"),
    "first order at the end for the encoder": Mutation("baselines/semi_amortized", "model.terms_of(own, x, n_samples).elbo(beta).sum()", "(model.terms_of(own, x, n_samples).elbo(beta) * 0 + own.mu.sum(-1) + own.log_sigma.sum(-1)).sum()",
                                                         "semi_amortized::test_first_order_trains_the_decoder_at_the_end_and_the_encoder_at_the_start"),
    "the certain refined": Mutation("baselines/semi_amortized", "hard := self.doubt(x) >=", "hard := self.doubt(x) <", "semi_amortized::test_only_images_above_the_threshold_are_refined"),
    "the hardest of the batch refined": Mutation("baselines/semi_amortized", "self.window.quantile(1 - self.refine)", "self.doubt(x).quantile(1 - self.refine)", "semi_amortized::test_refined_images_do_not_depend_on_their_batch"),
    "oldest uncertainties kept": Mutation("baselines/semi_amortized", "[-len(self.last):])", "[:len(self.last)])", "semi_amortized::test_a_window_keeps_the_last"),
    # the best Gaussian of an image
    "svi descends": Mutation("baselines/svi", "return p + lr.reshape", "return p - lr.reshape", "svi::test_a_step_ascends"),
    "svi keeps the last": Mutation("baselines/svi", "up, stalled = rise > 0,", "up, stalled = rise.isfinite(),", "svi::test_the_best_is_kept"),
    "all step sizes cut": Mutation("baselines/svi", "self.lr[stalled] /= 3", "self.lr /= 3 if len(stalled) else 1", "svi::test_images_climb_alone"),
    "never converged": Mutation("baselines/svi", "self.cuts[stalled] += 1", "self.cuts[stalled] += 0", "svi::test_diagonal_optimum_of_the_linear_model"),
    "looks by plain noise": Mutation("baselines/svi", "self.looked = whitened(antithetic(max(how.look_samples, 4 * self.best[0].shape[-1]), 1, self.best[0], self.generator))",
                                     "self.looked = antithetic(how.look_samples, 1, self.best[0], self.generator)", "svi::test_a_look_is_exact_on_a_linear_model"),
    "best epoch by the optimum": Mutation("baselines/svi", "validation = property(lambda self: self.start)", "validation = property(lambda self: self)", "svi::test_it_trains_and_validates_as_the_amortized_encoder"),
    "factor without its rows' widths": Mutation("baselines/svi", "log_sigma.exp()[..., None] * (T", "(T", "svi::test_parameters_and_back"),
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
    # mixtures
    "logits in the place of log weights": Mutation("baselines/mixture", "self.logits(phi).log_softmax(1).T", "self.logits(phi).T", "mixture::test_weights_sum_to_one_and_density_is_the_sum_over_heads"),
    "weights normalised over images": Mutation("baselines/mixture", "self.logits(phi).log_softmax(1).T", "self.logits(phi).log_softmax(0).T", "mixture::test_weights_sum_to_one_and_density_is_the_sum_over_heads"),
    "weights without a gradient": Mutation("baselines/mixture", "self.logits(phi).log_softmax(1).T", "self.logits(phi).log_softmax(1).T.detach()", "mixture::test_one_sample_of_each_component_reaches_every_parameter"),
    "components start equal": Mutation("baselines/mixture", "p.lerp_(first, 1 - spread)", "p.lerp_(first, 1.)", "mixture::test_components_start_spread_apart"),
    "separation with the wrong sign": Mutation("baselines/mixture", "(log_normal(z, mu, log_sigma) - log_qz_x)", "(log_qz_x - log_normal(z, mu, log_sigma))", "mixture::test_mixing_adds_the_separation_and_at_most_log_k"),
    # recursive mixtures
    "divergence punished": Mutation("baselines/recursive_mixture", "terms.elbo(beta) + encoder.eta", "terms.elbo(beta) - encoder.eta", "recursive_mixture::test_the_divergence_is_rewarded_up_to_its_cap"),
    "divergence turned round": Mutation("baselines/recursive_mixture", "(log_qz_x - Q.log_prob(z)).mean(0)", "(Q.log_prob(z) - log_qz_x).mean(0)", "recursive_mixture::test_no_gradient_above_the_cap"),
    "divergence without its cap": Mutation("baselines/recursive_mixture", "divergence.clamp(max=encoder.C)", "divergence", "recursive_mixture::test_no_gradient_above_the_cap"),
    "divergence not warmed up": Mutation("baselines/recursive_mixture", "encoder.eta * beta * divergence", "encoder.eta * divergence", "recursive_mixture::test_the_divergence_is_rewarded_up_to_its_cap"),
    "gradient through the mixture so far": Mutation("baselines/recursive_mixture", "with torch.no_grad(): Q = encoder.mixture(phi) if phi else None", "Q = encoder.mixture(phi) if phi else None",
                                                   "recursive_mixture::test_each_step_moves_its_own_and_nothing_else"),
    "later components move the shared trunk": Mutation("baselines/recursive_mixture", "with torch.no_grad(): phi.append(", "phi.append(", "recursive_mixture::test_each_step_moves_its_own_and_nothing_else"),
    "components move the decoder": Mutation("baselines/recursive_mixture", "with constant(model.decoder, model.likelihood): terms", "terms", "recursive_mixture::test_each_step_moves_its_own_and_nothing_else"),
    "the mixture's step moves the components": Mutation("baselines/recursive_mixture", "with constant(encoder.components): Q", "Q", "recursive_mixture::test_each_step_moves_its_own_and_nothing_else"),
    "epsilon and its complement swapped": Mutation("baselines/recursive_mixture", "torch.cat([first, F.logsigmoid(logit)])", "torch.cat([first, F.logsigmoid(-logit)])", "recursive_mixture::test_weights_sum_to_one_also_far_out"),
    "epsilon of the earlier in the place of the later": Mutation("baselines/recursive_mixture", "F.logsigmoid(-logit).flip(0).cumsum(0).flip(0)", "F.logsigmoid(-logit).cumsum(0)", "recursive_mixture::test_density_is_the_nested_formula"),
    "weights turned round": Mutation("baselines/recursive_mixture", "recursive_log_pi(self.logits(phi[0]).T", "recursive_log_pi(-self.logits(phi[0]).T", "recursive_mixture::test_density_is_the_nested_formula"),
    # the recipe
    "biases refitted with their weights": Mutation("recipe", 'if part == "heads" else [head.bias]', 'if part else [head.bias]', "recipe::test_refitted_heads_are_the_best"),
    "heads refitted in place": Mutation("recipe", "copy.deepcopy(model).eval()", "model.eval()", "recipe::test_refitted_heads_are_the_best"),
    "doubt without its half": Mutation("recipe", "0.5 * u.f_relative", "u.f_relative", "recipe::test_doubt_is_what_a_draw_costs_near_the_best_gaussian"),
    # the report of the gaps
    "difference to the VAE turned round": Mutation("gap_report", "d = (a - b)[", "d = (b - a)[", "gap_report::test_the_verdict_falls_either_way"),
    "scores that fall with the gap not turned": Mutation("gap_report", "-1 if spearman(v, gap) < 0 else 1", "1", "gap_report::test_a_free_score_may_be_used_with_its_sign_turned"),
    "margins over the best score of all": Mutation("gap_report", "bootstrap(margin, s[process], v, gap", "bootstrap(margin, s[best], v, gap", "gap_report::test_the_verdict_falls_either_way"),
    "the certain images refined": Mutation("gap_report", "np.argsort(-score", "np.argsort(score", "gap_report::test_refining_the_doubtful"),
    "chunks that all number their images from nought": Mutation("gap_runs", "range(c.first, c.first + len(c.x))", "range(len(c.x))", "gap_report::test_a_stopped_measurement_goes_on_to_the_same_numbers"),
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
