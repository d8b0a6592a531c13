"""Single mutations of the package and the tests that are about them; `make mutants` applies each (see mutate.py).

An entry is stale where its text no longer stands exactly once in the file: then give it the new text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Changes of one file, (what stands there, what takes its place), and the arguments of pytest that notice them."""

    file: str
    tests: str
    changes: list[tuple[str, str]]


GROUPS: list[Group] = [
    Group(
        "methods/control/dfpo/__init__.py",
        "test_dfpo.py -k 'not cheaper'",
        [
            ("before + np.float32(self.step_size) *", "before - np.float32(self.step_size) *"),
            ("(np.float32(self.rate) * before - gradient)", "(before - gradient)"),
            ("return -np.float32(self.gain) * gradient", "return -gradient"),
            ("return min(context.iteration, self.steps_per_environment)", "return self.steps_per_environment"),
            ("if context.iteration >= self.stages:", "if context.iteration > self.stages:"),
            ("max(min(stage // 2, stage - 1), 0)", "max(stage // 2, 0)"),
            ("0 if stage < self.warm_stages", "0 if stage <= self.warm_stages"),
            (
                "own[:, : self.own_steps(context.iteration - 1)] = True",
                "own[:, : self.own_steps(context.iteration)] = True",
            ),
            (
                '"next_observation" if self.label_pairing == "after"',
                '"next_observation" if self.label_pairing == "before"',
            ),
            ("for kind in (own & mask, ~own & mask):", "for kind in (mask,):"),
            ("(over.cumsum(1) - over == 0)", "(over.cumsum(1) == 0)"),
            ("rows[-self.labels_per_stage :]", "rows[: self.labels_per_stage]"),
            ("torch.cat([memory[name], new])", "new"),
            ('context.generator("remembered", context.spent.updates)', 'context.generator("remembered")'),
            ("optimizer[self.trains].state.clear()", "optimizer[self.trains].state"),
            ('if self.rolls == "random" else None', "if False else None"),
            ("error.sign() * weights", "error * weights"),
            ('if law.step_size != told["step_size"]:', "if False:"),
            ('if "step_size" not in told:', "if False:"),
            ("if box.shape != (shown,):", "if False:"),
        ],
    ),
    Group(
        "methods/control/dfpo/motion.py",
        "test_dfpo.py -k 'gradient or bounds or motion or conserved or velocities'",
        [
            ("passes.to_input(torch.ones(1, len(x), 1)).numpy()", "passes.to_input(-torch.ones(1, len(x), 1)).numpy()"),
            ("torch.autograd.grad(self(x).sum(), x)", "torch.autograd.grad(self(x).mean(), x)"),
            ("kept[:] = self.within(found)", "kept[:] = found"),
            ("np.clip(velocity, self.network.box.low, self.network.box.high)", "velocity"),
        ],
    ),
    Group(
        "tasks/control/shapes.py",
        "test_shapes.py",
        [
            ("np.roll(along, 1, -1) - along", "along - np.roll(along, 1, -1)"),
            ("size**-1.5 * turned * by_area", "size**-1.5 * by_area"),
            ("np.where(shape, np.abs(area), np.inf)", "np.maximum(np.abs(area), 1e-9)"),
            ("SMOOTHING = CELLS**2 - math.sqrt(2 * CELLS**2)", "SMOOTHING = 1e9"),
            ("BRIGHT = 0.5 / 127.5", "BRIGHT = 0.05"),
            ("(blocks[3] + 2 * diagonal)", "(blocks[3] + diagonal)"),
            ("+ blocks[2] - diagonal", "+ blocks[2]"),
            ("blocks[4] + blocks[3] / 2", "blocks[4] + blocks[3]"),
            ("np.pad(pixels, 1)", "np.pad(pixels, 0)"),
            ("gamma ** (-2 * self.t)", "gamma ** (-self.t)"),
            ("paid = -cost", "paid = cost"),
            ("cost >= NO_SHAPE or self.t", "self.t"),
            ("0.8 * draw.random(KNOTS) + 0.2", "draw.random(KNOTS)"),
            ("velocity + step * (rate * velocity", "velocity + step * (0 * velocity"),
        ],
    ),
    Group(
        "rollout/control.py",
        "test_dfpo.py -k 'anew'",
        [
            ("goes_on & (not anew)", "goes_on"),
            ("begun = environments.length > 0", "begun = environments.length >= 0"),
            ("state.return_so_far[i], state.actions[i] = 0.0, state.actions[i][:0]", "state.return_so_far[i] = 0.0"),
            ("self._begin(begun.tolist())", "pass"),
        ],
    ),
    Group(
        "rollout/evaluation.py",
        "test_shapes.py -k judged",
        [
            ("float(made.told[self.task.final_cost][i]) if", "float(made.told[self.task.final_cost][0]) if"),
        ],
    ),
    Group(
        "models/images.py",
        "test_images.py -k 'not learn and not go_on'",
        [
            ("side = (side - kernel) // stride + 1", "side = side - kernel + 1"),
            ("if kernel > side:", "if kernel > side + 1:"),
            ("np.flatnonzero(~pixels_of(inputs, images))", "np.flatnonzero(pixels_of(inputs, images))"),
            ("others = continuous & ~pixels_of(len(continuous), images)", "others = continuous"),
            ("normalize=normalize and bool(others.any())", "normalize=normalize"),
            ("if side >= 36 else SMALL if side >= 5", "if side > 36 else SMALL if side > 5"),
            ('Node("image", settings=settings)', 'Node("image", settings={**settings, "channels_first": True})'),
        ],
    ),
    Group(
        "tasks/control/catch.py",
        "test_images.py -k catch",
        [
            ("self.paddle + int(action) - 1", "self.paddle + int(action)"),
            ("1.0 if self.ball == self.paddle else -1.0", "1.0"),
            ("over = self.row == self.size - 1", "over = self.row == self.size - 2"),
        ],
    ),
    Group(
        "tasks/control/spaces.py",
        "test_images.py -k image",
        [
            ("begin=begin + image.begin", "begin=image.begin"),
            ("first = shape[0] < shape[2]", "first = shape[0] <= shape[2]"),
            (".permute(0, 3, 1, 2)", ".permute(0, 3, 2, 1)"),
        ],
    ),
    Group(
        "exporting/numpy_policy.py",
        "test_export.py",
        [
            ("narrow(np.clip((x - mean) / deviation, -clip, clip))", "narrow((x - mean) / deviation)"),
            ('rows if first["kind"] == "normalize" else narrow(rows)', "narrow(rows)"),
            ("flat / 255.0 if", "flat / 256.0 if"),
            ('whole += self.arrays["action_start"]', "pass"),
            ("inside = np.clip(x.astype", "inside = np.asarray(x.astype"),
            ("x[:, -experts:].argmax(1)", "x[:, -experts:].argmin(1)"),
            ("np.expm1(np.minimum(x, np.float32(0)))", "x"),
            ("(x > 0).astype(np.int64)", "(x >= -1).astype(np.int64)"),
            ("if not action_mask.any(1).all():", "if False:"),
        ],
    ),
    Group(
        "exporting/onnx_file.py",
        "test_export.py",
        [
            ('"Sub", flat, self.constant(starts)', '"Sub", flat, self.constant(0 * starts)'),
            ('x = self.cast(self.add("Clip", white, *limits), "float32")', 'x = self.cast(white, "float32")'),
            ('first = self.add("Mul", best, self.constant(numbers))', "first = best"),
            ('inside = self.add("Min", self.add("Max", wide, bounds[0]), bounds[1])', "inside = wide"),
            ('self.constant(self.arrays["action_start"])', "self.constant(0)"),
        ],
    ),
    Group(
        "exporting/export.py",
        "test_export.py",
        [
            ("if not apart <= TOLERANCE:", "if False:"),
            ("if not overwrite and (", "if False and ("),
        ],
    ),
    Group(
        "trained_policy.py",
        "test_export.py",
        [
            ("actor.noise(1, len(shown), self._stream)[0] if sampled else None", "None"),
            ("return action if actor.execute is None else actor.execute(action)", "return action"),
            ("or not mask.any(1).all()):", "):"),
        ],
    ),
    Group(
        "tasks/language/tables.py",
        "test_answer_tables.py -k 'measures or no_policy or samples or walks'",
        [
            ("mass[state] * probability[state][goes_on]", "probability[state][goes_on]"),
            ("table - self.log_reference)", "self.log_reference - table)"),
            ("self.log_reference[state] + q / temperature, 0)", "self.log_reference[state] + q, 0)"),
            (
                "if self.kl(self.tilted(math.exp(middle))) > kl else",
                "if self.kl(self.tilted(math.exp(middle))) < kl else",
            ),
            ("value[state] = q.max()", "value[state] = q.mean()"),
            ("here = self.following[states[:, step]", "here = self.following[states[:, 0]"),
            ("later = self.following > ", "later = self.following >= "),
        ],
    ),
    Group(
        "models/language/tables.py",
        "test_answer_tables.py -k 'entropy or read_back or hand'",
        [
            ("if bool((temperature == 1).all()):", "if True:"),
            ("[state].float() if", "[0].float() if"),
            ('policy.theta.data.copy_(held["theta"])', "pass"),
            ("self.tables.log_reference + self.tables.features", "self.tables.features"),
        ],
    ),
    Group(
        "rollout/tables.py",
        "test_answer_tables.py -k samples",
        [
            (
                "state = torch.where(alive, tables.following[here, token], ENDS)",
                "state = tables.following[here, token]",
            ),
            ("uniform[:, step], sampling)", "uniform[:, 0], sampling)"),
        ],
    ),
    Group(
        "tasks/language/garbage_tail.py",
        "test_answer_tables.py -k 'world or bradley or settings'",
        [
            ("% self.covered", "% self.actions"),
            ("if not self.benign:", "if True:"),
            ("(1 - self.tail_mass) / self.covered", "1 / self.covered"),
        ],
    ),
    Group(
        "tasks/language/tabled.py",
        "test_answer_tables.py -k 'world or bradley'",
        [
            ("torch.sigmoid(gap)", "torch.sigmoid(2 * gap)"),
            ("((first, second), (second, first))", "((second, first), (first, second))"),
            ("if self.instance is None:", "if True:"),
        ],
    ),
    Group(
        "tasks/language/answer_tree.py",
        "test_answer_tables.py -k tree_is",
        [
            ("if len(prefix) + 1 < DEPTH:", "if len(prefix) < DEPTH:"),
            ("one[p[-1]] if p", "one[p[0]] if p"),
            ("gold[number[tuple(walks[0, :-1].tolist())], walks[0, -1]] = 1", "gold[0, 0] = 1"),
            ("-tables.logprob_of(torch.log_softmax(phi", "tables.logprob_of(torch.log_softmax(phi"),
        ],
    ),
    Group(
        "tasks/language/token_sums.py",
        "test_answer_tables.py -k token_sums",
        [
            ("gold - gold.mean(1, keepdim=True)", "gold"),
            ("places[-1] = ENDS", "places[0] = ENDS"),
            ("second[alike, -1] = (second[alike, -1] + 1) % self.choices", "pass"),
        ],
    ),
    Group(
        "run_state/tables.py",
        "test_answer_tables.py -k 'logged or refused'",
        [
            ('("chosen", batch["preferred"])', '("chosen", ~batch["preferred"])'),
            ('found["kl"] ** 0.5', 'found["kl"]'),
            ('"eval/best_gold": tables.best}', '"eval/best_gold": found["gold"]}'),
            ("float(total[rows].mean())", "float(total[rows].sum())"),
            ("order = table[0].argsort(descending=True)", "order = table[0].argsort(descending=False)"),
            ('"score": float(tables.gold[0, i])', '"score": float(table[0, i])'),
            ("bool(tables.gold[0, i] >= tables.best)", "True"),
            ("batch: Experience = pairs.batch(range(len(pairs)))", "batch: Experience = pairs.batch(range(1))"),
            ("if model in needed:", "if False:"),
            ("        if asked:", "        if False:"),
        ],
    ),
    Group(
        "claims/daa_scaling.py",
        "test_daa_scaling.py -k 'since or mass or law or halving'",
        [
            ("math.log2(log.rmse / quadratic.rmse)", "math.log2(quadratic.rmse / log.rmse)"),
            ("math.log2(log.rmse / quadratic.rmse)", "math.log(log.rmse / quadratic.rmse)"),
            ("max(found, key=lambda pair: pair[0])[1]\n", "found[0][1]\n"),
            ("[(d, gold - found[0][1]) for d, gold in found]", "found"),
            ("float(final - start > 1e-3)", "float(final > start)"),
            (
                "values[: len(self.names)], values[len(self.names) :]",
                "values[len(self.names) :], values[: len(self.names)]",
            ),
        ],
    ),
    Group(
        "reproduction/judging.py",
        "test_daa_scaling.py -k two_measures",
        [
            ("value = measure.of(o.run, o.metric)", "value = quantity.measure.of(o.run, o.metric)"),
            ("value = _worst(measure, observed", "value = _worst(quantity.measure, observed"),
        ],
    ),
    Group(
        "reproduction/claim.py",
        "test_daa_scaling.py -k 'experiment or studied'",
        [
            ('for name in ("of", "combine", "measures")', 'for name in ("of", "combine")'),
            ("self.slug in self.studies", "False"),
        ],
    ),
    Group(
        "tasks/language/rankings.py",
        "test_rankings.py",
        [
            ("if order[i] > order[j]]", "if order[i] >= order[j]]"),
            ("key=lambda i: -order[i])", "key=lambda i: order[i])"),
            ("order[pair[1]] - order[pair[0]])", "order[pair[0]] - order[pair[1]])"),
            ("return math.isfinite(value)", "return bool(math.isfinite(value) or True)"),
            ("    except OverflowError:\n        return False", "    except ValueError:\n        return False"),
            ("if not isinstance(response, str | list) or not response:", "if not isinstance(response, str | list):"),
            ('r.get("chosen") is None', "True"),
        ],
    ),
    Group(
        "tournament.py",
        "test_tournament.py",
        [
            ("rates[j, i] = 1 - rates[i, j]", "rates[j, i] = rates[i, j]"),
            ("rate, name = min(others)", "rate, name = max(others)"),
            ("(float(row.sum()) - 0.5) / (n - 1)", "float(row.sum()) / n"),
            ("if j != i]", "]"),
            ('generator=generator(EVALUATION_SEED, "round-robin")', "generator=torch.Generator()"),
            ("if len({*names}) < len(names):", "if False:"),
        ],
    ),
    Group(
        "tasks/language/preferences.py",
        "test_tournament.py -k 'circle'",
        [
            ("(0, 1, -1)[(mine - other) % 3]", "(0, 1, 1)[(mine - other) % 3]"),
            ('("pairs", "pair_seed", "cycle")}', '("pairs", "pair_seed")}'),
            ('if self.cycle else "gold"', 'if False else "gold"'),
        ],
    ),
    Group(
        "report/problems.py",
        "test_report_problems.py -k own_start",
        [
            ("free = [name for name in BY_SEED if name not in named]", "free = list[str]()"),
            ("free = [name for name in BY_SEED if name not in named]", "free = [*BY_SEED]"),
            ("if key not in free}", "if False}"),
        ],
    ),
    Group(
        "report/findings.py",
        "test_report.py -k no_percent",
        [
            ("or min(*values, value) < 0 < max(*values, value)", ""),
            ("[x - value for x in values]", "values"),
        ],
    ),
    Group(
        "report/task_charts.py",
        "test_hump.py -k 'slope or drawing'",
        [
            ("across[good].max(initial=0) / 10", "across[good].max(initial=0) / 100"),
            ("if len(across) > 2 else 0.0", "if len(across) > 1 else 0.0"),
            ("np.log10(across[good]), np.log10(up[good])", "across[good], np.log10(up[good])"),
            ('for run in comparison.of(method) if run.status == "finished"]', "for run in comparison.of(method)]"),
            ("if not y or chart.x not in (*keys, *axes):", "if not y:"),
            ("for key in y} if chart.powers else {}", "for key in y}"),
            ("if chart.fitted in y:", "if True:"),
        ],
    ),
    Group(
        "report/task_charts.py",
        "test_hump.py -k page",
        [
            ("start + hump.at(d)] for d in along", "hump.at(d)] for d in along"),
            ("max(d for d, _ in gained)", "1.0"),
            ('if run.status == "finished" and both:', "if both:"),
            ("b - both[0][1]) for a, b in both]", "b) for a, b in both]"),
            ("[[d * d, start + hump.at(d)]", "[[d, start + hump.at(d)]"),
        ],
    ),
    Group(
        "report/hump.py",
        "test_hump.py",
        [
            ("points = [(d, r) for d, r in points if d > 0]", "points = list(points)"),
            ("math.exp(self.alpha / self.beta - 1)", "math.exp(self.alpha / self.beta)"),
            ("(self.alpha - self.beta * _falls", "(self.alpha + self.beta * _falls"),
            ("math.sqrt(wrong / len(rows))", "math.sqrt(wrong)"),
            ("bb * ay - ab * by", "bb * ay"),
            ("(aa * by - ab * ay) / determinant", "(aa * by + ab * ay) / determinant"),
            ('return math.log(d) if law == "log" else d', "return math.log(d)"),
            ("if len({d for d, _ in points}) < 2:", "if len(points) < 2:"),
            ("if self.beta <= 0:", "if self.beta < -1:"),
            ("self.alpha / (2 * self.beta)", "self.alpha / self.beta"),
            ("if d > 0 else 0.0", "if d >= 0 else 0.0"),
        ],
    ),
    Group(
        "run_state/language.py",
        "test_domains.py -k nobody_writes_any",
        [
            ('if labelled and {"score", "reward", "preferred"} & part.gives:', "if False:"),
            ('"reward-model" in recipe.required_models() and not recipe.fixed_pairs:', "False:"),
        ],
    ),
    Group(
        "core/checking.py",
        "test_domains.py -k another_domain",
        [('part.domain not in ("", domain)', 'part.domain not in ("", part.domain)')],
    ),
    Group(
        "core/checking.py",
        "test_named_streams.py",
        [
            ('if domain != "control" and stream.acts not in', "if stream.acts not in"),
            ("if not name.isidentifier():", "if False:"),
            (
                "batch.stream == name for batch in batches(recipe.updates))",
                "True for batch in batches(recipe.updates))",
            ),
            ("if walk.fresh == recipe.stream:", 'if walk.fresh == "":'),
            ("batch.stream == recipe.stream for batch in counting", "True for batch in counting"),
        ],
    ),
    Group(
        "core/context.py",
        "test_named_streams.py",
        [
            ("names = (self.stream, *names) if self.stream else names", "pass"),
            ('return f"{self.stream}.{name}" if self.stream else name', "return name"),
        ],
    ),
    Group(
        "core/streams.py",
        "test_named_streams.py",
        [("context.stream = name", "pass"), ('context.stream = ""', "pass")],
    ),
    Group(
        "core/updating.py",
        "test_named_streams.py",
        [
            ("adds=counts)", "adds=True)"),
            ("self.acts = self.updates.acting.get(batch.stream, self.models.acts)", "pass"),
            ("self.context.fresh[batch.stream] if batch.stream else self.fresh", "self.fresh"),
            ("see.rows = tuple(self._rows(batch, see) for batch in update.also)", "see.rows = (self.fresh,)"),
        ],
    ),
    Group(
        "run_state/control.py",
        "test_named_streams.py",
        [
            ('stream_seed(seed, "stream", stream) if stream else seed', "seed"),
            ("if known is not None and (found is not inner or type(known) is not type(inner)):", "if False:"),
            ("policy = self.models[self.acting[stream]]", "policy = self.models[self.models.acts]"),
            ("self.actors[stream], self.collectors", "self.actor, self.collectors"),
        ],
    ),
    Group(
        "kernels/flat.py",
        "test_named_streams.py",
        [("(0, -x.numel() % ALIGNMENT)", "(0, 0)")],
    ),
    Group(
        "pretrain/reward_models.py",
        "test_learned_task.py test_rm_ensembles.py",
        [
            ("    if not made:\n        made.append(wanted", "    if True:\n        made.append(wanted"),
            ("return texts[0::2], texts[1::2]", "return texts[0::2], texts[0::2]"),
            ("while len(wanted.scorers) < wanted.members:", "while not wanted.scorers:"),
            ("cached(wanted.folder(model, member), make)", "cached(wanted.folder(model, 0), make)"),
        ],
    ),
    Group(
        "tasks/language/learned.py",
        "test_learned_task.py",
        [("return None if self.scorers or not self._scored_by_model else", "return None if self.scorers else")],
    ),
    Group(
        "parts/optimize.py",
        "test_ppo_max.py -k 'imitated or gradient_of'",
        [
            ("(t.loss(outputs, micro) * w[index]).sum()", "(t.loss(outputs, micro) * w).sum()"),
            ('if bool((batch["weight"] != 0).any()):', "if True:"),
        ],
    ),
    Group("core/checking.py", "test_own_rows.py", [("= None, set(batch.fields)", "= None, set()")]),
    Group(
        "core/updating.py", "test_own_rows.py", [("            return batch.rows(self.context)", "            pass")]
    ),
    Group(
        "run_state/language_run_state.py",
        "test_aihf.py -k resumed",
        [("found |= {name: model.stored(name) for name, model in self.own.items()}", "pass")],
    ),
    Group(
        "cli/demo.py",
        "test_demo.py -k 'largest or sizes_are or said'",
        [
            ("spent + size.seconds(iteration, workers) <= LIMIT", "size.seconds(iteration, workers) <= LIMIT"),
            (
                "return fitting[0] if fitting else [*SIZES.values()][-1]",
                "return fitting[-1] if fitting else [*SIZES.values()][-1]",
            ),
            ("max(self.work / busy, self.longest)", "self.work / busy"),
            ("total > LIMIT", "total < LIMIT"),
        ],
    ),
    Group(
        "comparison.py",
        "test_comparison_table.py -k over_again",
        [("made = (text, *(type(part) for part in recipe.parts()),", "made = (text,")],
    ),
    Group(
        "comparison_plan.py",
        "test_executors.py -k 'missing or goes_and or lines_have or command_that or objects or python_too'",
        [
            ('text.startswith("#")]', 'text.startswith("%")]'),
            ("groups[-1][-1] + 1:", "groups[-1][-1]:"),
            ("lines[run.key][0] for run in left", "lines[run.key][0] - 1 for run in left"),
            ("if (folder / file).exists() and not is_of_plan(folder / file):", "if False:"),
            ('if not overwrite and (folder / "compare.yaml").is_file():', "if False:"),
            ("left = [run for run in runs if not run.finished]", "left = runs"),
            ('["--trust-code"] if trust_code else []', "[]"),
            ("if len(text.splitlines()) > 1:", "if False:"),
            ("own = typed.name ==", "own = typed.name !="),
            ("{k: os.environ[k] for k in INHERITED if os.environ.get(k)}", "{}"),
            ("if names := [*dict.fromkeys", "if not [*dict.fromkeys"),
        ],
    ),
    Group(
        "comparison_folder.py",
        "test_executors.py -k 'does_not_ask or python_too or own_files'",
        [
            ("if arm_folder(name, seed) == folder.absolute().name:", "if name:"),
            ('method=method, label="" if name == method else name, seed=seed)', "method=method, seed=seed)"),
            ('label="" if name == method else name, seed=seed)', 'label="" if name == method else name)'),
        ],
    ),
    Group(
        "comparison.py",
        "test_executors.py -k 'own_files or no_model or died_before or finished_here'",
        [
            ("check_code(config, folder.absolute().parent, trust_code=trust_code)", "pass"),
            ("make=missing and not plans)", "make=missing)"),
            ("trust_code=bool(named_code(arm.config))", "trust_code=False"),
        ],
    ),
    Group(
        "reproduction/planning.py",
        "test_executors.py -k 'look_by_look or not_planned'",
        [
            ("if left := [run for run in runs if not _made(run)]:", "if left := []:"),
            ("if executor == PLAN and quick:", "if False:"),
            ("            break\n    return", "            continue\n    return"),
        ],
    ),
    Group(
        "runtime/executor.py",
        "test_executors.py -k 'dies_takes or at_once or cannot_be or takes_ray'",
        [
            ("            self._own.process = None\n", ""),
            ("or (os.cpu_count() or 1) // self._threads))", "or (os.cpu_count() or 1)))"),
            ("if kind == PLAN and workers is not None:", "if False:"),
            ('if kind == RAY and find_spec("ray") is None:', "if False:"),
            ("return RAY if executor.startswith", "return PLAN if executor.startswith"),
        ],
    ),
    Group(
        "runtime/ray_cluster.py",
        "test_executors.py -k told_apart",
        [
            ('e.name[0] != "." or e.name == LISTED', 'e.name[0] != "."'),
            ("if known.get(name) != stamp:", "if name not in known:"),
            ("for one in torn if one", "for one in () if one"),
            ("            above.rmdir()", "            pass"),
        ],
    ),
    Group(
        "runtime/ownership.py",
        "test_executors.py -k goes_and",
        [
            ("return PLANNED_BY.encode() in text.read(200)", "return True"),
            ("or is_of_plan(path)", ""),
        ],
    ),
    Group(
        "report/findings.py",
        "test_report.py -k 'owes_nothing or uneven'",
        [("return not isinstance(own, dict) or unit in own", "return True")],
    ),
    # ------------------------------------------------------------------------------------------- runtime
    Group(
        "runtime/device.py",
        "test_device.py -k 'defaults or asked_for or refused or auto'",
        [
            ('"cuda" if found.cuda else "mps" if found.mps else "cpu"', '"cuda" if found.cuda else "cpu"'),
            ('kind == "cuda" and found.bfloat16', 'kind == "cuda"'),
            ('tf32=kind == "cuda" and config.precision != "float32"', 'tf32=kind == "cuda"'),
            (">= SLOW", "> SLOW"),
            (" or config.force or ", " or "),
        ],
    ),
    Group(
        "rollout/room.py",
        "test_device.py -k 'rows or row'",
        [
            ("fitting.bit_length() - 1", "fitting.bit_length()"),
            ("int(free * SHARE)", "int(free)"),
            ("kept * length + DRAWING", "kept + DRAWING"),
        ],
    ),
    Group(
        "runtime/seeding.py",
        "test_streams.py -k 'numbers_in_every or all_matter'",
        [
            ("for n in (seed, *names))", "for n in names)"),
            ("for n in (seed, *names))", "for n in (seed, *names[:1]))"),
            ('"/".join(', '"".join('),
            (">> 1", ">> 2"),
            ("manual_seed(stream_seed(seed, *names))", "manual_seed(stream_seed(0, *names))"),
        ],
    ),
    Group(
        "core/context.py",
        "test_streams.py -k 'all_matter'",
        [
            ("generator(self.seed, *names, self.iteration)", "generator(self.seed, *names)"),
            ("generator(self.seed, *names, self.iteration)", "generator(0, *names, self.iteration)"),
            ("generator(self.seed, *names, self.iteration)", "generator(self.seed, self.iteration)"),
        ],
    ),
    Group(
        "parts/collect.py",
        "test_streams.py -k 'other_prompts_and or prompts_of_its_own or (drawn_twice and (grpo or rloo))'",
        [
            ("(context.iteration - 1) * self.prompts_per_step", "0"),
            ('rows("train", context.seed, start', 'rows("train", 0, start'),
            ('rows("train", context.seed, start', 'rows("test", context.seed, start'),
            ('generator=context.generator("collect")', "generator=torch.Generator().manual_seed(0)"),
        ],
    ),
    Group(
        "parts/windows.py",
        "test_streams.py -k other_prompts_and",
        [
            ('rows("train", context.seed, n, 1)', 'rows("train", 0, n, 1)'),
            ('generator=context.generator("collect")', "generator=torch.Generator().manual_seed(0)"),
        ],
    ),
    Group(
        "methods/language/dapo_direct.py",
        "test_streams.py -k 'drawn_twice and dapo-direct'",
        [
            ('task.rows("train", context.seed, first', 'task.rows("train", 0, first'),
            ('generator=context.generator("collect")', "generator=torch.Generator().manual_seed(0)"),
        ],
    ),
    Group(
        "run_state/control.py",
        "test_streams.py -k 'judged_on or other_episodes'",
        [
            ("Evaluator(task, self.evaluation.seed)", "Evaluator(task, self.seed)"),
            ("seed = training_seed(self.seed)", "seed = 0"),
            ("return seed if seed != EVALUATION_SEED else", "return seed if True else"),
        ],
    ),
    Group(
        "rollout/environments.py",
        "test_control_sampling.py test_streams.py -k 'same_rollout or other_episodes or gone_on_from'",
        [
            ('(seed, "environment", environment, episode)', '(0, "environment", environment, episode)'),
            ('(seed, "environment", environment, episode)', '(seed, "environment", episode)'),
            ('(seed, "environment", environment, episode)', '(seed, "environment", environment)'),
        ],
    ),
    # ----------------------------------------------------------------------------------------- experience
    Group(
        "core/experience.py",
        "test_experience.py",
        [
            ("if tensor.shape[0] != size:", "if False:"),
            ("if len(values) != size:", "if False:"),
            (
                "return Experience({**self.data, **fields}, self.columns",
                "return Experience({**fields, **self.data}, self.columns",
            ),
            ("{**self.columns, **columns}", "{**columns, **self.columns}"),
        ],
    ),
    Group(
        "core/fields.py",
        "test_fields.py",
        [
            ("for base in reversed(part.__mro__)", "for base in (part,)"),
            ("if known not in (None, field):", "if False:"),
            ("known, where = FIELDS.get(name), ", "known, where = None, "),
            ("return {**FIELDS, ", "return {"),
        ],
    ),
    Group("core/recipe.py", "test_fields.py", [("own_fields(map(type, self.parts()))", "pass")]),
    Group(
        "cli/trace.py", "test_fields.py", [("documented(map(type, (*policy, *self.recipe.parts())))", "documented(())")]
    ),
    # ------------------------------------------------------------------------------------------------ credit
    Group(
        "parts/credit.py",
        "test_parts.py",
        [
            ("zeros_like(x)).sum() / mask.sum().clamp(min=1)", "zeros_like(x)).sum() / mask.numel()"),
            ("torch.where(mask, x, torch.zeros_like(x)).sum()", "(x * mask).sum()"),
            ("white if shift else white + mean, torch.zeros_like(x))", "white, torch.zeros_like(x))"),
            ("if not counted[t]:\n                continue", "if False:\n                continue"),
            ("if cuts[t]:\n                advantage = 0.0\n", "if cuts[t]:\n"),
            ("follows = finals[i][t]", "follows = 0.0"),
            ("if ends[t]:\n                advantage = follows = 0.0", "if ends[t]:\n                follows = 0.0"),
            ("if ends[t]:\n                advantage = follows = 0.0", "if ends[t]:\n                advantage = 0.0"),
            ("gamma * gae_lambda * advantage", "gae_lambda * advantage"),
            ("rewards[t] + gamma * follows - next_value", "rewards[t] + follows - next_value"),
            ("row[t] = total = rewards[t] + gamma * total", "row[t] = total = rewards[t] + total"),
            (
                "row[t] = total = rewards[t] + gamma * total",
                "total = rewards[t] + gamma * total\n                row[t] = gamma * total",
            ),
            ("(size - correction).clamp(min=1)).sqrt()", "size.clamp(min=1)).sqrt()"),
            ("entering, own = x[enters], index[enters]", "entering, own = x, index"),
            ("mean = torch.where(low == high, low, mean)\n", "pass\n"),
            ("(std[counted] == 0).float().mean()", "(std == 0).float().mean()"),
            ("target = advantage + value * mask", "target = advantage"),
        ],
    ),
    Group(
        "core/special_rows.py",
        "test_special_rows.py",
        [
            ('return found & experience["window"] if "window" in experience else found', "return found"),
            ('found = found & ~experience["greedy"]', "pass"),
            ('found = found & ~experience["score"].isnan()', "pass"),
            ("return sampled_rows(experience) & finished_rows(experience)", "return sampled_rows(experience)"),
        ],
    ),
    # ------------------------------------------------------------------------------------------------- score
    Group(
        "parts/score.py",
        "test_parts.py",
        [
            ("return mask & (after == 1)", "return mask"),
            ("score[:, None], torch.zeros((), dtype=score.dtype))", "score[:, None], score[:, None])"),
            ("    d = ref_logprob - logprob\n    if", "    d = logprob - ref_logprob\n    if"),
            ("return d.square() / 2", "return d.square()"),
            ("return torch.expm1(d) - d", "return torch.expm1(d) + d"),
            ("((limit - cache - length) / cache).clamp(-1.0, 0.0)", "((limit - length) / cache).clamp(-1.0, 0.0)"),
            (
                "((limit - cache - length) / cache).clamp(-1.0, 0.0)",
                "((limit - cache - length) / cache).clamp(max=0.0)",
            ),
            ("min(0.2, max(-0.2, kl / target - 1))", "kl / target - 1"),
            ("min(0.2, max(-0.2, kl / target - 1))", "min(0.2, max(-0.2, 1 - kl / target))"),
            ("(1 + error * episodes / horizon)", "(1 + error / horizon)"),
            ('kept &= torch.tensor([g not in lost for g in experience["group"].tolist()])', "pass"),
            ("truncated=torch.zeros_like(end)", "truncated=end"),
            ("whole = log_ratio[scored_rows(experience)]", "whole = log_ratio"),
            (
                'reward=experience["reward"] - coefficient * log_ratio',
                'reward=experience["reward"] + coefficient * log_ratio',
            ),
            ("context.spent.reward_calls += calls", "pass"),
        ],
    ),
    Group(
        "parts/score.py",
        "test_p3o.py -k 'one_charge'",
        [
            ("charge = self.kl_coef * torch.where(", "charge = torch.where("),
            ('reward=experience["reward"] - at_last_step(charge, mask)', 'reward=experience["reward"]'),
        ],
    ),
    # ------------------------------------------------------------------------------------------------ select
    Group(
        "parts/select.py",
        "test_parts.py",
        [
            ("if bool((weight != 0).any()) else experience", "if True else experience"),
            ("counted=judged)[1] > 0", "counted=judged)[1] >= 0"),
            ('experience["ended"] | ~finished_rows(experience)', '~experience["ended"] | ~finished_rows(experience)'),
        ],
    ),
    Group(
        "parts/select.py",
        "test_ppo_max.py -k 'critic or pretraining'",
        [
            ("if context.iteration > self.critic_pretraining:", "if context.iteration >= self.critic_pretraining:"),
            ("weight=torch.zeros_like(weight), value_weight=own", "weight=weight, value_weight=own"),
        ],
    ),
    # ----------------------------------------------------------------------------------------------- improve
    Group(
        "parts/improve.py",
        "test_parts.py",
        [
            ("return weight / weight.sum().clamp(min=1e-12)", "return weight / weight.numel()"),
            ("sequences = (per_sequence > 0).sum().clamp(min=1)", "sequences = len(weight)"),
            ("weight / per_sequence.clamp(min=1e-12) / sequences", "weight / per_sequence.clamp(min=1e-12)"),
            ("return weight / (sequences * length_limit[:, None])", "return weight / length_limit[:, None]"),
            ("loss = -torch.minimum(ratio * advantage,", "loss = -torch.maximum(ratio * advantage,"),
            (
                "ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)",
                "ratio.clamp(1 - clip_high, 1 + clip_low) * advantage)",
            ),
            (
                "torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)",
                "torch.minimum(loss, -dual_clip * advantage)",
            ),
            ("torch.minimum(loss, -dual_clip * advantage)", "torch.maximum(loss, -dual_clip * advantage)"),
            (
                "loss = torch.maximum(loss, (clipped - target).square())",
                "loss = torch.minimum(loss, (clipped - target).square())",
            ),
            ("    return loss / 2\n", "    return loss\n"),
            ("(value - old_value).clamp(-clip_range, clip_range)", "(value - old_value).clamp(max=clip_range)"),
            ('return -self.nll_coef * outputs["logprob"]', 'return -outputs["logprob"]'),
            ('return -self.entropy_coef * outputs["entropy"]', 'return self.entropy_coef * outputs["entropy"]'),
        ],
    ),
    Group(
        "parts/improve.py",
        "test_closed_form.py -k 'grad_outputs or updates_in_closed'",
        [
            ("moves = gain <= least", "moves = gain < least"),
            ("moves &= gain > floor", "pass"),
            ('{"logprob": -gain * weights * moves}', '{"logprob": -gain * weights}'),
            ('grad_output = -experience["advantage"] * weights', 'grad_output = experience["advantage"] * weights'),
            ("grad_output = self.value_coef * weights * error", "grad_output = weights * error"),
            (
                '(grad_output * error).sum() / 2, {"value": grad_output}',
                '(grad_output * error).sum(), {"value": grad_output}',
            ),
            ("grad_output = -self.entropy_coef * weights", "grad_output = self.entropy_coef * weights"),
        ],
    ),
    Group(
        "parts/improve.py",
        "test_update.py -k 'not language_model and not sampler'",
        [
            ('stopped.float(), "ratio": ratio}', '1 - stopped.float(), "ratio": ratio}'),
            (
                'return experience["value_weight"] if "value_weight" in experience else experience["weight"]\n\n    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:\n        """Weighted value',
                'return experience["weight"]\n\n    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:\n        """Weighted value',
            ),
        ],
    ),
    # ------------------------------------------------------------------------------------------------- pairs
    Group(
        "parts/pairs.py",
        "test_preference_data.py -k 'epoch or best_is or shares or preference_function'",
        [
            (
                "rows[score[rows].argmax()], rows[score[rows].argmin()]",
                "rows[score[rows].argmin()], rows[score[rows].argmax()]",
            ),
            ("ties += 1\n            continue", "continue"),
            ("preferred[best] = True", "preferred[worst] = True"),
            ("index_add(0, second, 1 - probability)", "index_add(0, second, probability)"),
            ("won / games.clamp(min=1), torch.full((size,), 0.5))", "won / games.clamp(min=1), torch.zeros(size))"),
        ],
    ),
    Group(
        "data/pairs.py",
        "test_preference_data.py test_language_lists.py -k 'epoch or source_are or stopped or gives_its_pairs'",
        [
            ('generator=generator(seed, "pairs", epoch)', 'generator=generator(seed, "pairs")'),
            ('generator=generator(seed, "pairs", epoch)', 'generator=generator(0, "pairs", epoch)'),
            ("[i % size] for i in range", "[0] for i in range"),
            ("self.taken += count", "pass"),
            ("self.taken = self._committed\n", "pass\n"),
        ],
    ),
    Group(
        "models/language/named.py",
        "test_language_lists.py",
        [
            ("moved.lerp_(goal, tau)", "moved.lerp_(goal, 1 - tau)"),
            ("copy.deepcopy(self._models[entry.copied])", "self._models[entry.copied]"),
            ("if isinstance(self.entries[name], Trained)", ""),
        ],
    ),
    Group(
        "parts/pairs.py",
        "test_p3o.py -k 'partner or pair'",
        [
            (
                "torch.where(size[index] == 2, total[index] - rows, -1)",
                "torch.where(size[index] >= 2, total[index] - rows, -1)",
            ),
        ],
    ),
    Group(
        "parts/pairs.py",
        "test_preference_losses.py",
        [
            ("return chosen - rejected\n", "return rejected - chosen\n"),
            ("counted.float() / counted.sum().clamp(min=1)", "counted.float() / len(counted)"),
            ('"rewards/accuracies": (chosen > rejected).float()', '"rewards/accuracies": (chosen >= rejected).float()'),
            ('"rewards/chosen": self.scale * chosen', '"rewards/chosen": chosen'),
        ],
    ),
    # ------------------------------------------------------------------------------------------------ theory
    Group(
        "parts/theory.py",
        "test_theory_methods.py -k 'known_by_hand or naive or without_data or mirror or too_small or hold_together or bad_input'",
        [
            (
                "(previous.log() + alpha * (eta * log_reference + q)) / (1 + alpha * eta)",
                "(previous.log() + alpha * (eta * log_reference + q))",
            ),
            ("features.square(), diagonal).sqrt()", "features, diagonal).sqrt()"),
            (".clamp(0, float(task.highest[h]))", ".clamp(min=0)"),
            ("worst + bonus[h])", "worst - bonus[h])"),
            ("if self.beta >= needed * (1 - 1e-9):", "if True:"),
            ("if mine != theirs:", "if False:"),
        ],
    ),
    Group(
        "models/tables.py",
        "test_theory_models.py",
        [
            ("self.precision += features[:, :, None] * features[:, None, :]", "self.precision += features[:, :, None]"),
            ("torch.arange(len(next_states)), :, next_states] +=", "torch.arange(len(next_states)), :, next_states] ="),
            ("prior = self.ridge * torch", "prior = torch"),
            ("torch.log_softmax(task.log_reference, -1))", "torch.zeros_like(task.log_reference))"),
            ('alpha=-group["lr"]', 'alpha=group["lr"]'),
            ('_check_finite(self.name, parameter, f"lower', 'str(f"lower'),
            ("moved.lerp_(goal, tau)", "moved.lerp_(goal, 1 - tau)"),
            ("if not isinstance(home, OfTheory):", "if False:"),
            ("requires_grad_(asked)", "requires_grad_(True)"),
            ("(a - b).square().sum()", "(a - b).abs().sum()"),
        ],
    ),
    Group(
        "run_state/theory.py",
        "test_theory_models.py",
        [
            ("if (folder / FILE_OF_BEFORE).is_file():", "if False:"),
            ("if solves != kind:", "if False:"),
            ("if not recipe.models:", "if False:"),
            (
                "if not isinstance(models[name], GamePolicy if",
                "if False and not isinstance(models[name], GamePolicy if",
            ),
        ],
    ),
    Group(
        "methods/preference/nash_mp.py",
        "test_theory_models.py test_theory_methods.py -k 'known_by_hand or say_when'",
        [
            ('2 if self.prox_steps == "two" else 1', "2"),
            ('judged="anchor",', ""),
            ('see["anchor"].log_policy', 'see["policy"].log_policy'),
        ],
    ),
    Group(
        "methods/preference/nash_mp_pg.py",
        "test_theory_models.py -k 'say_when or after_the_move'",
        [
            ('"tau", self.kappa)', '"tau", 0.1)'),
            ('"every", self.proximal_steps * self.inner_steps)', '"every", self.inner_steps)'),
            ('judged="target",', ""),
            (
                "kl(see[self.towards].log_policy, see[self.target].log_policy)",
                "kl(see[self.target].log_policy, see[self.towards].log_policy)",
            ),
        ],
    ),
    Group(
        "core/updating.py",
        "test_theory_models.py -k 'after_the_move'",
        [("step.after_move(self._see(step.name)).items()", "()")],
    ),
    Group(
        "parts/theory.py",
        "test_theory_models.py -k 'must_be_stated'",
        [("if not isinstance(recipe.models.get(name), kind):", "if False:")],
    ),
    Group(
        "core/composing.py",
        "test_theory_models.py -k 'takes_the_place'",
        [
            ("return step.trains, step.required_models()", "return step.trains, frozenset()"),
            ("placed = dataclasses.replace(part, **changes)", "placed = part"),
        ],
    ),
    Group(
        "parts/theory.py",
        "test_theory_methods.py test_streams.py -k 'regret or 1500 or seeds_are or its_rewards or (drawn_twice and dr-rpo)'",
        [
            ('run_state.roll(context.generator("collect"))', "run_state.roll(context.generator())"),
            ("reward=reward, score=reward.sum(1)", "reward=reward, score=reward.mean(1)"),
        ],
    ),
    Group(
        "core/minibatches.py",
        "test_update.py test_domains.py -k 'not test_domains and not language_model and not sampler or never_parted'",
        [
            ("x.shape == counted.shape and x.is_floating_point() else x", "False else x"),
            ("found = found | (own != 0)", "pass"),
            ("return rows[torch.isin(unit[rows], picked)]", "return rows[picked]"),
        ],
    ),
    Group(
        "parts/credit.py",
        "test_recipe.py -k 'siblings'",
        [
            ('if recipe.collected_by("completions_per_prompt", 2) < 2:', "if False:"),
        ],
    ),
    # ---------------------------------------------------------------------------------------------- optimize
    Group(
        "parts/optimize.py",
        "test_update.py -k 'not language_model and not sampler'",
        [
            ("by_name.get(term.name, 0.0) + value", "value"),
            ("if size > self.max_grad_norm:", "if False:"),
            ("gradient.mul_(self.max_grad_norm / (size + 1e-6))", "gradient.mul_(1 / (size + 1e-6))"),
            ("context.spent.updates += 1", "context.spent.updates += 2"),
            ('+ 1\n            group["eps"]', '\n            group["eps"]'),
            (
                'self.adam_epsilon / math.sqrt(1 - group["betas"][1] ** step)',
                'self.adam_epsilon * math.sqrt(1 - group["betas"][1] ** step)',
            ),
            ('generator=context.generator("minibatches", epoch)', 'generator=context.generator("minibatches")'),
            ("rates.get(name, self._rate(context))", "self._rate(context)"),
            ('means.since("approx_kl", before) > self.target_kl', 'means.since("approx_kl", before) > 1e9'),
            ("if not math.isfinite(total):", "if False:"),
            ("if not math.isfinite(size):", "if False:"),
            ("first = 0.0  #", "first = 1.0  #"),
            (
                '(outputs["logprob"] - rows["behaviour_logprob"]) * counted',
                '(rows["behaviour_logprob"] - outputs["logprob"]) * counted',
            ),
        ],
    ),
    Group(
        "parts/optimize.py",
        "test_closed_form.py -k 'updates_in_closed or of_their_own'",
        [
            ('whiten(rows["advantage"], None if bool(own.all()) else own)', 'rows["advantage"]'),
            (
                "grad_outputs[name] = grad_outputs[name] + grad_output if name in grad_outputs else grad_output",
                "grad_outputs[name] = grad_output",
            ),
            ("for on in self.also:", "for on in ():"),
            ("alone = not self.also ", "alone = True "),
        ],
    ),
    # ---------------------------------------------------------------------------------------------- drawing
    Group(
        "rollout/drawing.py",
        "test_sampling.py -k 'filtered or tokens_lie or first_tokens or uniform_numbers or greedy_is or top_k or nonsense'",
        [
            ("logits / temperature[:, None]", "logits * temperature[:, None]"),
            ("cdf[:, -1:], right=True)", "cdf[:, -1:], right=False)"),
            ("ordered[:, top_k:] = 0", "ordered[:, top_k + 1 :] = 0"),
            ("before = ordered.cumsum(-1) - ordered", "before = ordered.cumsum(-1)"),
            ("before >= top_p * ordered.sum(-1, keepdim=True)", "before >= top_p"),
            ("if not 0 < self.top_p <= 1:", "if not 0 < self.top_p <= 2:"),
            ("uniform[:, None] * cdf[:, -1:]", "uniform[:, None]"),
        ],
    ),
    Group(
        "rollout/decoding.py",
        "test_sampling.py test_continuations.py -k 'fresh_pass or contract or rows_end or compaction or first_tokens or same_responses or tool_replies or replies_ends or limits'",
        [
            ("torch.where(greedy, 1.0, sampling.temperature)", "torch.where(greedy, sampling.temperature, 1.0)"),
            ("self.uniform[step].index_select(0, row)", "self.uniform[0].index_select(0, row)"),
            ("dtype=torch.float64, generator=generator)", "dtype=torch.float64)"),
            ("(step[:, None] < self.room)", "(step[:, None] <= self.room)"),
            ("present if self.forced is None else present & ~self.forced[:longest]", "present"),
            (
                '"behaviour_logprob": self.logprob[:longest].masked_fill(~mask, 0.0)',
                '"behaviour_logprob": self.logprob[:longest]',
            ),
            ('"ended": ~self.going', '"ended": self.going'),
            ("ended = chosen & torch.isin(token, ends)", "ended = torch.isin(token, ends)"),
            (
                "row, token, alive, room = row[order], token[order], alive[order], room[order]",
                "row, token, alive, room = row[order], token[order], alive[order], room",
            ),
        ],
    ),
    Group(
        "rollout/cached.py",
        "test_sampling.py -k 'fresh_pass or compaction or greedy_is'",
        [
            ("position = (real.cumsum(1) - 1).clamp(min=0)", "position = real.cumsum(1).clamp(min=0)"),
            ("self.position = self.position + 1", "pass"),
            ("self.position = self.position[order]", "pass"),
        ],
    ),
    # --------------------------------------------------------------------------------------------- control
    Group(
        "models/distributions.py",
        "test_control_policies.py test_closed_form.py -k 'not updates'",
        [
            ("grad_output = probability * -by_logprob", "grad_output = probability * by_logprob"),
            (
                "grad_output -= probability * (logs + entropy) * by_entropy",
                "grad_output -= probability * logs * by_entropy",
            ),
            ("np.cumsum(self.choices)[:-1]", "np.cumsum(self.choices)[1:]"),
            ("torch.where(action > 0, -params, params)", "torch.where(action > 0, params, -params)"),
            (
                "(nn.functional.softplus(params) - ones * params)",
                "(nn.functional.softplus(params) + ones * params)",
            ),
            (
                "constant = self.log_std.sum() + 0.5 * math.log(2 * math.pi) * self.size",
                "constant = self.log_std.sum() + 0.5 * math.log(2 * math.pi)",
            ),
            ("(action - params) * (-self.log_std).exp()", "(action - params) * self.log_std.exp()"),
            ("per_number = 0.5 * (1 + math.log(2 * math.pi))", "per_number = 0.5 * math.log(2 * math.pi)"),
            ("(uniform.log() - torch.log1p(-uniform)).numpy()", "uniform.log().numpy()"),
            (".exponential_(generator=generator).log_().neg_()", ".exponential_(generator=generator).log_()"),
        ],
    ),
    Group(
        "models/normalization.py",
        "test_control_policies.py test_closed_form.py -k 'not updates'",
        [
            ("added *= n / total", "added *= 1"),
            ("variance *= before / total", "pass"),
            (
                "variance += np.add.reduce(spread, 0, keepdims=True) / total",
                "variance += np.add.reduce(spread, 0, keepdims=True) / n",
            ),
            ("off *= n / total", "off *= before / total"),
            ("self.count[()] = total", "self.count[()] = n"),
            ("mean[:, self.fixed], variance[:, self.fixed] = 0.0, 1.0", "pass"),
            ("white = batch - self.mean", "white = batch + self.mean"),
            ("np.minimum(white, _MOST, out=white)", "pass"),
        ],
    ),
    Group(
        "rollout/control.py",
        "test_control_sampling.py -k 'rollout or resetting or statistics or dead or cut or real_end or both or forgotten'",
        [
            ("present, ended = ~b.dead, b.terminated | b.truncated", "present, ended = ~b.dead, b.terminated"),
            ("b.truncated[-1] |= goes_on", "b.truncated[-1] |= present[-1]"),
            ("final[goes_on, -1] = self._current[goes_on]", "pass"),
            ("returns.append(return_so_far + float(", "returns.append(float("),
            ("steps + end + 1 - begins - rests", "steps + end + 1 - begins"),
            (
                "return_so_far, steps, begins = 0.0, 0, end + 1",
                "return_so_far, steps, begins = return_so_far, 0, end + 1",
            ),
            (
                "final[cut, t] = actor.normalize(environments.final[cut])",
                "final[cut, t] = actor.normalize(environments.observation[cut])",
            ),
        ],
    ),
    Group(
        "rollout/environments.py",
        "test_control_sampling.py -k 'rollout or resetting or dead or cut or real_end or both or trouble or finite'",
        [
            (
                "self.terminated[i], self.truncated[i] = ends, not ends",
                "self.terminated[i], self.truncated[i] = ends, cuts",
            ),
            ("self.begin(i, int(self.episode[i]) + 1)", "self.begin(i, int(self.episode[i]))"),
        ],
    ),
    Group(
        "rollout/environments.py",
        "test_told.py",
        [
            ("or value.shape != rows.shape[1:] or", "or"),
            ("or not np.isfinite(value).all():", "or False:"),
            ("            rows[i] = value", "            rows[0] = value"),
            (
                "            self.restore(i, self.new[i])\n            self.begin(i, episode)",
                "            self.begin(i, episode)",
            ),
            ("self.before[i] = self.kept(i)", "pass"),
            ("self.restore(i, self.new[i])\n        self._reset(i, seed)", "self._reset(i, seed)"),
        ],
    ),
    Group(
        "core/checking.py",
        "test_told.py",
        [
            ("sorted(part.told - part.required())", "()"),
        ],
    ),
    Group(
        "core/recipe.py",
        "test_told.py",
        [
            ("*(kind().told for p in stated for kind in p.derives)", "*(frozenset() for p in ())"),
        ],
    ),
    Group(
        "rollout/control.py",
        "test_told.py",
        [
            ("environments.restore(i, state.lasting[i])", "pass"),
            ("b.told[name][t] = told", "b.told[name][0] = told"),
            ("np.where(_like(present, x), x, 0)", "x"),
            ("self.state.lasting = self._lasting()", "pass"),
        ],
    ),
    Group(
        "rollout/control.py",
        "test_actor_memory.py",
        [
            ("kept[moment.starts] = 0", "pass"),
            ("self.state.memory = {name: x.copy() for name, x in self._memory.items()}", "pass"),
            ("self._memory = {name: x.copy() for name, x in state.memory.items()}", "self._memory = state.memory"),
            ("self._memory = {name: x.copy() for name, x in state.memory.items()}", "pass"),
        ],
    ),
    Group(
        "rollout/environment_state.py",
        "test_actor_memory.py test_told.py",
        [
            ('arrays |= {f"memory/{name}"', '_ = {f"memory/{name}"'),
            ("lasting=lasting if any(lasting) else [],", "lasting=[],"),
        ],
    ),
    Group(
        "rollout/evaluation.py",
        "test_actor_memory.py",
        [("kept[starts] = 0", "pass"), ("if actor.memory and not memory:", "if actor.memory:")],
    ),
    Group(
        "rollout/vector_environments.py",
        "test_told.py",
        [
            ('where = info.get("final_info", {}) if ended[i] else info', "where = info"),
            ("if begun is not None and begun[i]:", "if False:"),
        ],
    ),
    Group(
        "data/replay.py",
        "test_told.py",
        [
            (
                "kept[name].take(rows, 0) for name in self.entry.also",
                "kept[name].take(last, 0) for name in self.entry.also",
            )
        ],
    ),
    Group(
        "rollout/vector_environments.py",
        "test_control_sampling.py -k 'rollout or resetting or dead or cut or real_end or both or trouble or finite'",
        [
            ("self.truncated &= ~self.terminated", "pass"),
            ("self.dead[:], self.any_dead = ended, True", "self.dead[:], self.any_dead = False, False"),
            ("self._length[begun] = 0", "pass"),
        ],
    ),
    Group(
        "rollout/evaluation.py",
        "test_control_sampling.py -k 'evaluation'",
        [
            ("return episode_seed(self.seed, 0, episode)", "return episode_seed(self.seed, 0, 0)"),
            ("Moment(actor.normalize(observation), ", "Moment(observation.astype(np.float32), "),
        ],
    ),
    # ------------------------------------------------------------------------------------------ operations
    Group(
        "tasks/operations/simulator.py",
        "test_operations_simulator.py",
        [
            ("share = (on_hand / asked.clamp(min=1e-9)).clamp(max=1)", "share = on_hand / asked.clamp(min=1e-9)"),
            ("(share @ self._supplies.T + (1 - self._inside))", "(share @ self._supplies.T + 1)"),
            ("kept = end.clamp(min=0) if self.network.lost else end", "kept = end.clamp(min=0)"),
            ("return (kept + order)[..., None], end", "return kept[..., None], end"),
            ("inventory[..., 2:], order[..., None]]", "inventory[..., 2:], 0 * order[..., None]]"),
            (
                "torch.maximum(self._holding * end, -self._penalty * end)",
                "torch.minimum(self._holding * end, -self._penalty * end)",
            ),
            ("each.sum(-1) / self.network.stores", "each.sum(-1)"),
            (
                "order.clamp(min=0), inventory[:, : self.network.upstream, 0]",
                "order, inventory[:, : self.network.upstream, 0]",
            ),
            ("[t - 1 for t in self.network.lead_time]", "[max(t - 2, 0) for t in self.network.lead_time]"),
            ("share = on_hand / (order @ self._supplies)", "share = (on_hand / (order @ self._supplies)).clamp(max=1)"),
        ],
    ),
    Group(
        "tasks/operations/simulator.py",
        "test_operations_optima.py test_operations_simulator.py -k 'dynamic_programs_policy or whole_where'",
        [
            ("order = order.round()\n", "pass\n"),
            ("cost = cost + fixed * (torch.stack", "cost = cost - fixed * (torch.stack"),
        ],
    ),
    Group(
        "tasks/operations/optima.py",
        "test_operations_optima.py -k 'fact and not levels_in or policy_iteration or chain_of_one or two_stages'",
        [
            ("return (lead_time + 1) * mean + z * spread,", "return lead_time * mean + z * spread,"),
            ("std * math.sqrt(lead_time + 1)\n    z =", "std * math.sqrt(lead_time)\n    z ="),
            (
                "slope = (holding + penalty) * float(norm.cdf(k)) - penalty",
                "slope = (holding + penalty) * float(norm.cdf(k)) + penalty",
            ),
            ("norm.pdf(k) - k * norm.sf(k)", "norm.pdf(k) + k * norm.sf(k)"),
            (
                "cost = holding * left + penalty * (mean - (stock - left))",
                "cost = holding * left + penalty * (mean - stock)",
            ),
            ("future[..., 1:] += ordering_cost", "future += ordering_cost"),
            ("after[:, 0] = poisson.sf(stock - 1, mean)", "pass"),
            ("LostSalesOptimum((low + high) / 2,", "LostSalesOptimum(high + 0.001,"),
            ("extra = (own - above) * (stock - (lead + 1) * mean)", "extra = (own - above) * (stock - lead * mean)"),
            ("np.where(stock > levels[-1], induced.min(), induced)", "induced"),
            ("float(induced.min()) - transit", "float(induced.min())"),
            ("correlation * s.sum() ** 2 + (1 - correlation) * (s**2).sum()", "(s**2).sum()"),
            ("float(norm.pdf(z)) * spread / len(s)", "float(norm.pdf(z)) * spread"),
        ],
    ),
    Group(
        "tasks/operations/settings.py",
        "test_operations_simulator.py test_streams.py -k 'traces or moments or start_is'",
        [
            ('generator(seed, "traces", split, index)', 'generator(seed, "traces", split)'),
            ('generator(seed, "traces", split, index)', 'generator(seed, "traces", index)'),
            ('generator(seed, "traces", split, index)', 'generator(0, "traces", split, index)'),
            (
                "share * used * torch.tensor(self.customers.mean)",
                "share * used + 0 * torch.tensor(self.customers.mean)",
            ),
        ],
    ),
    Group(
        "run_state/operations.py",
        "test_operations_run_state.py -k 'best_on_dev or of_before or without_a_kept or horizon'",
        [
            ("if now < before or not math.isfinite(before):", "if True:"),
            ("if now < before or", "if now > before or"),
            ("if not self._keeps_best():", "if False:"),
            ('if "models" not in about:', "if False:"),
            ("dev_periods: int = 600", "dev_periods: int = 200"),
        ],
    ),
    Group(
        "models/inventory.py",
        "test_operations_run_state.py -k 'densities or noise_is'",
        [
            ("total: Tensor = each.sum(-1)", "total: Tensor = each.mean(-1)"),
            ("torch.full((size,), math.log(noise))", "torch.full((size,), noise)"),
        ],
    ),
    Group(
        "parts/operations.py",
        "test_operations_run_state.py -k 'noise_is'",
        [
            ("if isinstance(acts, OrderingPolicy) and acts.noise is None:", "if False:"),
            ("if self.noise is not None and not isinstance(recipe.collect, SampleOrders):", "if False:"),
        ],
    ),
    Group(
        "core/recipe.py",
        "test_operations_run_state.py -k 'addresses or parts_say'",
        [
            ('if self.updates and wanted_part == "optimize":', "if False:"),
            ('(called.replace("-", "_"), part.name.replace("-", "_"))', '(called.replace("-", "_"),)'),
            ("if part.slot and old.slot == part.slot]", "if old.slot == part.name]"),
        ],
    ),
    Group(
        "tasks/batched.py",
        "test_batched.py -k 'not ten_thousand'",
        [
            ("self.episode[rows] += 1", "self.episode += 1"),
            ("going = (~self.ended).nonzero()[:, 0]", "going = torch.arange(self.rows)"),
            ("terminated[going] = moved.terminated", "terminated[going] = True"),
            ("if bool(bad.any()):", "if False:"),
            ("if access not in self.access:", "if False:"),
            ("found.masked_fill(~mask, -torch.inf)", "found"),
        ],
    ),
    Group(
        "tasks/operations/routing.py",
        "test_batched.py -k 'not ten_thousand'",
        [
            ('generator(self.seed, "cities", row, episode)', 'generator(self.seed, "cities", row)'),
            ("torch.where(over, back, 0.0)", "0 * back"),
            ("left[0] = False", "pass"),
            ("if city in seen:", "if False:"),
            ("if solution[0] != 0:", "if False:"),
            ("best[having ^ (1 << city)] + within[:, city]", "best[having ^ (1 << city)]"),
            ("(best[whole] + away[1:, 0]).argmin()", "best[whole].argmin()"),
        ],
    ),
    Group(
        "tasks/operations/routing.py",
        "test_construction.py -k copies_begin",
        [
            ('cities[at, state["start"]]', "cities[:, 0]"),
            ("return found[first:] + found[:first]", "return found"),
            ("start = torch.arange(len(copy)), copy % state", "start = torch.arange(len(copy)), 0 * copy % state"),
        ],
    ),
    Group(
        "tasks/batched.py",
        "test_construction.py -k copies_begin",
        [
            (
                "self.part(torch.arange(self.rows).repeat_interleave(count))",
                "self.part(torch.arange(self.rows).repeat(count))",
            )
        ],
    ),
    Group(
        "tasks/operations/tours.py",
        "test_construction.py -k 'of_seven or every_heuristic or by_hand'",
        [
            ("torch.where((other < length)", "torch.where((other > length)"),
            ("left[rows, order[-1]] = False", "pass"),
            ("nearest.masked_fill(within, -torch.inf).argmax(1)", "nearest.masked_fill(within, torch.inf).argmin(1)"),
            ("zero = (order == 0).int().argmax(1)", "zero = (order == 0).int().argmin(1)"),
        ],
    ),
    Group(
        "models/constructive.py",
        "test_construction.py -k 'scores_follow or trained_on'",
        [
            ("~(seen.mask | ended)", "~(seen.mask | True)"),
            ("return first if whole else 1", "return first"),
            (
                "x.reshape(len(x) // copies, copies * x.shape[1], *x.shape[2:])",
                "x.transpose(0, 1).reshape(len(x) // copies, copies * x.shape[1], *x.shape[2:])",
            ),
        ],
    ),
    Group(
        "rollout/construction.py",
        "test_construction.py test_vehicles.py -k 'beam or infeasible or trained_on or not_finite'",
        [
            ("gain[..., 0] = torch.where(ended, 0.0, gain[..., 0])", "pass"),
            ("paid.argmin(1, keepdim=True)", "paid.argmax(1, keepdim=True)"),
            ("if found.cost is None:", "if False:"),
            ("if bool(logprobs.isnan().any()):", "if False:"),
        ],
    ),
    Group(
        "methods/operations/am.py",
        "test_routing_methods.py -k 'advantages or multi_start or baseline_follows or clip or different_cities'",
        [
            ('total = experience["reward"].sum(1) + built.costs', 'total = experience["reward"].sum(1) - built.costs'),
            ("if p < self.significance:", "if True:"),
            ("float((mine - best).mean()) < 0", "float((mine - best).mean()) > 0"),
            ("(total - mean[number])", "total"),
            ("self.clip * torch.tanh(", "self.clip * ("),
        ],
    ),
    Group(
        "methods/operations/bq_nco/__init__.py",
        "test_routing_methods.py test_atsp.py test_knapsack.py "
        "-k 'tokens_alone or direction or padding or any_order or either_way'",
        [
            ("nn.init.zeros_(network.alpha)", "pass"),
        ],
    ),
    Group(
        "methods/operations/bq_nco/network.py",
        "test_routing_methods.py test_atsp.py test_knapsack.py "
        "-k 'tokens_alone or direction or padding or any_order or either_way'",
        [
            ("if self.ends:\n            h = h", "if False:\n            h = h"),
            ("share.mT], -1)", "share], -1)"),
            ("* there[:, None, :, None]", "* 1"),
            ("costs * (both.sum((1, 2))", "costs * (1 + 0 * both.sum((1, 2))"),
            ('if "target" in batch', 'if "targets" in batch'),
        ],
    ),
    Group(
        "methods/operations/bq_nco/subproblems.py",
        "test_routing_methods.py test_atsp.py -k first_decision",
        [
            ("size + 2, 1)", "size + 1, 1)"),
            ('"end": length[:, 0] - 1', '"end": length[:, 0] - 2'),
            ("        if self.symmetries:", "        if False:"),
            ("draw(0, 2, 1) if reversible else", "draw(0, 2, 1) if True else"),
            ("place[:, :, None], place[:, None]]", "place[:, None], place[:, :, None]]"),
        ],
    ),
    Group(
        "methods/operations/bq_nco/selections.py",
        "test_knapsack.py test_orienteering.py -k remains",
        [
            ("back = (length[:, None] - 1 - place)", "back = (length[:, None] - place)"),
            ("longest - steps.sum(1)", "longest - 0.9 * steps.sum(1)"),
            ("fits = capacity - (weight * gone).sum(1)", "fits = capacity"),
            ("right = taken & ~gone", "right = taken"),
        ],
    ),
    Group(
        "tasks/operations/asymmetric.py",
        "test_atsp.py -k 'cheapest_ways or ten_thousand or infeasible or of_all_tours or everywhere'",
        [
            ("costs[:, over, None] + costs[over]", "costs[:, over, None] + costs[:, over]"),
            ('torch.where(over, costs[at, action, state["start"]], 0.0)', "0.0"),
            ('costs[at, state["here"], action] + back', 'costs[at, action, state["here"]] + back'),
            ("if node in seen:", "if False:"),
            ("if missing := sorted(set(range(count)) - seen):", "if False:"),
            ("if tour[0] != 0:", "if False:"),
            ("costs[here][there] for", "costs[there][here] for"),
            ("return found[first:] + found[:first]", "return found"),
        ],
    ),
    Group(
        "tasks/operations/tours.py",
        "test_atsp.py -k 'exchange or of_all_tours'",
        [
            ("away[rows, moving[:, c - 1], first]", "away[rows, first, moving[:, c - 1]]"),
            ("place + high - middle", "place + high - middle + 1"),
            ("torch.arange(1, count + 1), 3)", "torch.arange(1, count), 3)"),
        ],
    ),
    Group(
        "tasks/operations/knapsack.py",
        "test_knapsack.py -k 'ten_thousand or by_hand or nothing or infeasible or whole or subsets'",
        [
            ("found: Tensor = left & (weight", "found: Tensor = (left | True) & (weight"),
            ("left & (weight <= (fits + ROUNDING / 2 * capacity)[:, None])", "left.clone()"),
            ("(fits + ROUNDING / 2 * capacity)", "(fits + 1)"),
            ("(fits + ROUNDING / 2 * capacity)", "(fits - ROUNDING * capacity)"),
            ("found[:, 0] = ~found.any(1)", "pass"),
            ("if item in seen:", "if False:"),
            ("weight > instance.capacity * (1 + ROUNDING)", "weight > 1.3 * instance.capacity"),
            ("if not 1 <= item <= count:", "if not 0 <= item <= count:"),
            ("instance.value[item - 1] for item in seen))", "instance.value[item - 1] for item in solution[1:]))"),
            ("(before >= 0) & (with_it > best)", "with_it > best"),
            ("left -= np.where(taken[:, item], weight[:, item], 0)", "pass"),
            ("if instance.weight[i] <= fits:", "if True:"),
        ],
    ),
    Group(
        "tasks/operations/orienteering.py",
        "test_orienteering.py -k 'grow or ten_thousand or by_hand or infeasible or of_all_ways'",
        [
            ("hundredths[0] = 0", "pass"),
            ('way = away[at, state["here"]] + away[at, state["end"]]', 'way = away[at, state["here"]]'),
            ('state["left"] & (way <= room[:, None])', "(way <= room[:, None])"),
            ("left[given.end] = False", "pass"),
            ('room = state["room"] - state["away"]', 'room = state["room"] - 0 * state["away"]'),
            ("+ ROUNDING / 2 * state", "- ROUNDING * state"),
            ("if node in seen:", "if False:"),
            ("if length > instance.longest", "if length > 1.3 * instance.longest"),
            ("or node == end:", "or False:"),
            ("pairwise([0, *route, instance.end])", "pairwise([0, *route])"),
            ("math.floor(way + 0.5) if instance.whole", "way if instance.whole"),
            ("whole.min(1) > instance.longest", "best.min(1) > instance.longest"),
        ],
    ),
    Group(
        "tasks/operations/prize_routes.py",
        "test_orienteering.py -k of_all_ways",
        [
            ("may = left & (way + home <= room[:, None])", "may = left & (way <= room[:, None])"),
            ("fits = free & (least <= room[:, None])", "fits = free & (least <= 1.2 * room[:, None])"),
            ("room[r] -= least[r, node]", "pass"),
            ("free[r, node] = False", "pass"),
            ("better = found > worth", "better = found < worth"),
            ("return torch.where(out, place, after)", "return after"),
        ],
    ),
    Group(
        "tasks/operations/job_shop.py",
        "test_job_shop.py -k 'plain_loop or ten_thousand or shown or waiting_is_counted or asked_again or deadlock'",
        [
            ("move = move & (~taken | move.gather(1, by))", "move = move & ~taken"),
            ("can = can & (~held | (done & can.gather(1, target)))", "can = can & ~held"),
            ("& self._ready(s)[:, None] & up[..., None]", "& self._ready(s)[:, None]"),
            (".any(1) | repairs | move.any(1))", ".any(1) | move.any(1))"),
            ("way = way[way.index(following) :]", "pass"),
            ("(clock < worked[:, None])", "(clock <= worked[:, None])"),
            ("ready.sum(1) * (then - now)", "(then - now)"),
            ("torch.where(soon, now + 1, then)", "then"),
            ("gone = (now[row, 0] - begun) - (passed[1] - passed[0])", "gone = now[row, 0] - begun"),
            ("left = there & ((place > at) | processed | blocks)", "left = there & (place > at)"),
        ],
    ),
    Group(
        "tasks/operations/shops.py",
        "test_job_shop.py -k 'optima or infeasible or lengthen or best_of_all or shutdowns_are'",
        [
            ("if begin < to:", "if begin <= to:"),
            ("if start <= begin < end:", "if False:"),
            ("if begin < ready:", "if False:"),
            ("begun[k + 1] if k + 1 < len(job) else ready, j", "ready, j"),
            ("missing -= start - at", "pass"),
            ("0 if swaps else 1", "0"),
            ("if buffers or ends[before]:", "if buffers:"),
            ("up = 1 + (uniform", "up = 2 + (uniform"),
        ],
    ),
    Group(
        "tasks/operations/dispatching.py",
        "test_job_shop.py -k 'called or plain_loop or asked_again'",
        [
            ('"MWKR": lambda s: -_work_left(s)', '"MWKR": _work_left'),
            ('> s["place"][..., None]', '>= s["place"][..., None]'),
            ("rows.asks_again = True", "pass"),
            ("x[k::count] for name", "x[:: count] for name"),
        ],
    ),
    Group(
        "methods/operations/isbjssp.py",
        "test_isbjssp.py -k 'messages or by_hand or mean_nothing or enter_nothing or rewards'",
        [
            ("(others @ dis) / rivals", "others @ dis"),
            ("before.mT @ suc", "before @ suc"),
            (
                "h = join(torch.cat([*(torch.relu(x) for x in told), h, first], -1))",
                "h = join(torch.cat([*told, h, first], -1))",
            ),
            ("kinds(h) * there", "kinds(h)"),
            ("~torch.eye(len(job[0]), dtype=torch.bool)", "True"),
            ("((job.amax(1) + 1) * mean)", "mean"),
        ],
    ),
    Group(
        "parts/combinatorial.py",
        "test_isbjssp.py -k rewards",
        [('value=value * experience["mask"]', "value=value")],
    ),
    Group(
        "methods/operations/subpo.py",
        "test_subpo.py -k 'chain or released or judges or modular or expected or visited or critic or step_of'",
        [
            ('"nodes"][:, 0, :, -1].gather(1, start)', '"nodes"][:, 0, :, -1].gather(1, start) * 0'),
            ("upto[:, -1:]], 1)\n        else:", "upto[:, :1]], 1)\n        else:"),
            ("torch.cat([-reward[:, 1:], upto[:, -1:]], 1)", "torch.cat([reward[:, 1:], upto[:, -1:]], 1)"),
            ('reward = experience["alone"]', "pass"),
            ("(~seen.left).float()", "seen.left.float()"),
            ("now if self.markov else", "now if not self.markov else"),
            ("credit=(PeriodBaseline(gamma=1.0), WhitenAdvantage())", "credit=(PeriodBaseline(), WhitenAdvantage())"),
            ("terms=(*step.terms, ValueLoss())", "terms=(PolicyGradient(), ValueLoss())"),
        ],
    ),
    Group(
        "tasks/operations/set_functions.py",
        "test_paths.py -k 'hand or less_to_more or differences'",
        [
            ('(here & ~state["covered"]).float()', "here.float()"),
            ('{"covered": state["covered"] | here}', '{"covered": here}'),
            ('(kind >= 0) & ~state["emptied"][row, cell]', "kind >= 0"),
            ("min(found[k], wanted)", "found[k]"),
            ("for cell in set(path))", "for cell in path)"),
            ("(variance + self.noise).sqrt()", "self.noise**0.5"),
            ('state["variance"] - column.square()', 'state["variance"]'),
            ("torch.log1p(self.kernel.diagonal() / noise) / 2", "torch.log1p(self.kernel.diagonal() / noise)"),
        ],
    ),
    Group(
        "tasks/operations/terrain.py",
        "test_paths.py -k 'blocked or rooms or plain_loops or covariances or so_many or nine or numbers'",
        [
            ("cell if there in self.walls else there", "there"),
            ('"down": (1, 0), "up": (-1, 0)', '"down": (-1, 0), "up": (1, 0)'),
            ("range(hops - 1)", "range(hops)"),
            ("found[sorted(terrain.walls)] = 0", "pass"),
            ("away.square() / 3", "away.square()"),
            ("noise * torch.eye(len(cells), dtype=kernel.dtype)", "0 * torch.eye(len(cells), dtype=kernel.dtype)"),
            ("if row not in (above, above + 1)", "if row != above"),
            ('generator(seed, "items")', 'generator(0, "items")'),
        ],
    ),
    Group(
        "tasks/operations/paths.py",
        "test_paths.py -k 'ten_thousand or what_it_says or infeasible or staying'",
        [
            ('torch.where(state["steps"] == 0, worth.alone[terrain.start], 0.0)', "0.0"),
            ("steps >= self.problem.horizon)", "steps > self.problem.horizon - 2)"),
            ("visited[at, cell] = cell, True", "visited[at, cell] = cell, False"),
            ("if following not in _reached(terrain, cell):", "if False:"),
            ("if path[0] != terrain.start:", "if False:"),
            ("found.add(r * terrain.columns + c if is_open else cell)", "found.add(r * terrain.columns + c)"),
        ],
    ),
    Group(
        "tasks/operations/path_planners.py",
        "test_paths.py -k 'sequences or greedy or again'",
        [
            ("move = int(ahead.argmax())", "move = int(ahead.argmin())"),
            ("if float(ahead[move]) <= NOTHING:", "if False:"),
            ("move if cell == start else first[cell]", "move"),
            ("if cell in before and not problem.worth.repeats:", "if cell in before:"),
            ("if len(longer) > most:", "if False:"),
        ],
    ),
    Group(
        "run_state/combinatorial.py",
        "test_subpo.py -k 'judged_by or fit_together'",
        [
            ("what.task.seen(above)", "above"),
            (
                'metrics[f"{own}{what.task.measure}"] = what.task.seen(mean)',
                'metrics[f"{own}{what.task.measure}"] = mean',
            ),
            ("if sampled else None", "if not sampled else None"),
            ("if task.kind.by_moves and not models[name].scores_moves:", "if False:"),
        ],
    ),
    Group(
        "tasks/operations/fleets.py",
        "test_air_taxis.py -k 'by_hand or delays or charges or booked or cannot_be_flown or clocks or battery'",
        [
            ("return passengers * fare - OPERATING * miles * passengers", "return passengers * fare"),
            ("min(SEATS, waiting[hour][here][target])", "waiting[hour][here][target]"),
            ("landed + REPAIR if failed[k][flights[k]] else landed", "landed"),
            ("delay = max(0.0, mean_delay[here]", "delay = (mean_delay[here]"),
            ("ends[len(ends) - chargers] if len(ends) >= chargers else ready", "ready"),
            (">= day.parking:", "> day.parking:"),
            ("if closed[hour][here][target]:", "if False:"),
            ("if told[k] < len(own):", "if False:"),
            ("charges = end > now and len(busy) < chargers", "charges = len(busy) < chargers"),
        ],
    ),
    Group(
        "tasks/operations/air_taxis.py",
        "test_air_taxis.py -k 'random_days and not settings0 or mean_nothing or peaks or by_hand or reaches_all'",
        [
            ('& ~state["closed"][rows, hour, here]', ""),
            ('room = self._count(state["at"]) < self.parking', 'room = self._count(state["at"]) <= self.parking'),
            ("(busy.sum(1) < self.chargers)", "(busy.sum(1) <= self.chargers)"),
            ("fills & (booked.sum(1) >= self.chargers)", "fills & (booked.sum(1) > self.chargers)"),
            ("waiting - passengers", "waiting"),
            ("(number + flies)", "(number + going)"),
            ("torch.where(charges, stayed, battery)", "stayed"),
            ("morning * to_hot + evening * from_hot", "morning * from_hot + evening * to_hot"),
            ("1 + 0.5 * demand", "1 + demand"),
            ("hours.masked_fill(stays, STAY)", "hours"),
        ],
    ),
    Group(
        "tasks/operations/fleet_rules.py",
        "test_air_taxis.py -k 'greed or stay_where or evolution'",
        [
            ("offers.profit / offers.hours if by_hour else offers.profit", "offers.profit"),
            ("worth.masked_fill(~allowed, -torch.inf)", "worth"),
            ("child[:, :ELITE] = plans[row, best[:, :ELITE]]", "pass"),
            ("trial = environment.forecast().copies(population)", "trial = environment.copies(population)"),
        ],
    ),
    Group(
        "tasks/operations/day_files.py",
        "test_uam_fleet.py -k 'no_day or were_written or without_an_entry'",
        [
            ("closed[routes[:, 0], routes[:, 1], routes[:, 2]] = True", "pass"),
            ("torch.tensor([HOURS, n, n])", "torch.tensor([HOURS + 1, n, n])"),
            ("(numbers != numbers.round()).any()", "False"),
            ("MILE_FARE * miles", "miles"),
            ("    if len(own):", "    if False:"),
            ("(found.abs() <= LARGEST)", "found.isfinite()"),
        ],
    ),
    Group(
        "methods/operations/uam_fleet/networks.py",
        "test_uam_fleet.py -k 'laplacian or capsule or mean_nothing or hours or any_size'",
        [
            ("reached = [x**p]", "reached = [x * p]"),
            ("reached.append(of @ reached[-1])", "reached.append(of @ reached[0])"),
            ("(1 - torch.eye(features.shape[-2]))", "torch.ones(features.shape[-2], features.shape[-2])"),
            ("(crafts * numbers[..., -1:]).sum(-2)", "crafts[..., 0, :]"),
            ("if nodes.shape[1] != self.score.out_features:", "if False:"),
            ("hours.amax((1, 2), keepdim=True)", "hours.amax((1, 2, 3), keepdim=True)"),
        ],
    ),
    Group(
        "methods/operations/uam_fleet/__init__.py",
        "test_uam_fleet.py -k 'worth_nothing or refused or shares'",
        [
            ("nn.init.zeros_(parameter)", "pass"),
            ("[:, 0, :, STATIC + 2 :: SERIES]", "[:, 0, :, STATIC + 3 :: SERIES] * 2"),
            ('experience["reward"] * fleet', 'experience["reward"]'),
            ("if vars(self)[name] != vars(usual)[name]:", "if False:"),
        ],
    ),
    Group(
        "tasks/operations/vehicles.py",
        "test_vehicles.py -k 'by_hand or infeasible or optimum'",
        [
            ('state["left"].any(1) & (state["here"] != 0)', 'state["left"].any(1)'),
            ('state["left"] & (state["demand"] <= state["load"][:, None])', 'state["left"].clone()'),
            ("load[a] + load[b] > instance.capacity", "False"),
            ("if node in seen:", "if False:"),
            ("> instance.capacity:\n                return", "> 99:\n                return"),
            ("if instance.demand[node] <= load", "if True"),
        ],
    ),
    Group(
        "tasks/operations/tsplib.py",
        "test_solve.py -k 'not solved_by and not builds_no'",
        [
            ("(away + 0.5).floor()", "away"),
            ("math.floor(way + 0.5)", "math.floor(way)"),
            (" or number in numbers", ""),
            ("said != str(len(points))", "False"),
        ],
    ),
    Group(
        "tasks/operations/inventories.py",
        "test_batched.py -k 'not ten_thousand'",
        [
            ("kept = max(end, 0.0) if network.lost else end", "kept = max(end, 0.0)"),
            ("post[..., :1] - sent[..., None]", "post[..., :1]"),
            ("[list(network.lead_time)]", "[[t - 1 for t in network.lead_time]]"),
            ("network.ordering_cost * (order > 0).sum(-1)", "0 * (order > 0).sum(-1)"),
            ("if sent > there + slack:", "if False:"),
            ("if network.transit and sent < there - slack:", "if False:"),
            ("return paid / network.stores", "return paid"),
            ('generator(self.seed, "inventories", row, episode)', 'generator(self.seed, "inventories", 0, episode)'),
            ("return Verdict(total / len(demand))", "return Verdict(total)"),
        ],
    ),
    # ----------------------------------------------------------------------------------------- statistics
    Group(
        "report/statistics.py",
        "test_report.py -k 'interval or paired or holm or probability or interquartile or bootstrap'",
        [
            ("special.stdtrit(n - 1, 0.5 + level / 2)", "special.stdtrit(n, 0.5 + level / 2)"),
            ("special.stdtrit(n - 1, 0.5 + level / 2)", "special.ndtri(0.5 + level / 2)"),
            ("float(x.std(ddof=1)) / math.sqrt(n)", "float(x.std(ddof=0)) / math.sqrt(n)"),
            ("return mean_interval(a - b, level)", "return mean_interval(b - a, level)"),
            ("float(2 * special.stdtr(a.size - 1, -abs(t)))", "float(special.stdtr(a.size - 1, -abs(t)))"),
            ("(len(p_values) - rank) * p_values[index]", "len(p_values) * p_values[index]"),
            ("largest = max(largest, min(", "largest = max(0.0, min("),
            ("(left > right) + 0.5 * (left == right)", "left > right"),
            (
                "index = rng.integers(rows, size=(resamples, rows, tasks))",
                "index = rng.integers(rows, size=(resamples, rows, 1))",
            ),
            ("star, pairs = (a.size + b.size) / 2 - 1,", "star, pairs = (a.size + b.size) / 2,"),
            ("return 1.0 if difference[0] == 0 else 0.0", "return 0.0"),
            ("dropped = values.shape[1] // 4", "dropped = values.shape[1] // 8"),
        ],
    ),
    Group(
        "report/json_lines.py",
        "test_report.py -k 'at_once'",
        [
            ('and line[-1:] == b"}"', ""),
            ("if lines.pop() or not all", "if not lines.pop() and not all"),
            ('b",0,".join(lines)', 'b",".join(lines)'),
            ("len(rows) == max(2 * len(lines) - 1, 0) and", "True and"),
        ],
    ),
    # -------------------------------------------------------------------------------------------- judging
    Group(
        "reproduction/judging.py",
        "test_claims.py -k 'criterion or verdict_follows or threshold or diverged or broke or paired or measure_that or which_way'",
        [
            ('"met" if estimate.low >= at_least', '"met" if estimate.value >= at_least'),
            ('"failed" if estimate.high < at_least', '"failed" if estimate.low < at_least'),
            ('"met" if estimate.high <= at_most', '"met" if estimate.low <= at_most'),
            ('all(o == "met" for o in effects)', 'any(o == "met" for o in effects)'),
            ('if "failed" in effects:', 'if effects and all(o == "failed" for o in effects):'),
            ("return min(values) if measure.higher_is_better", "return max(values) if measure.higher_is_better"),
            ('if o.run.status == "failed" and not diverged(o.run):', "if False:"),
            ('run.status == "failed" and run.summary.get("diverged") is True', 'run.status == "failed"'),
            ("probability_of_improvement(x, y) if better else", "probability_of_improvement(x, y) if True else"),
        ],
    ),
    Group(
        "reproduction/judging.py",
        "test_looks.py -k 'premise or one_criterion or stands or by_kind or decide_nothing'",
        [
            ('if "failed" in premises:', "if False:"),
            ('if "open" in premises:', "if False:"),
            ("failing = ALPHA / (self", "failing = ALPHA * (self"),
            ("beyond = sign * (estimate", "beyond = (estimate"),
        ],
    ),
    Group(
        "reproduction/looks.py",
        "test_looks.py",
        [
            ("OF_ALPHA * alpha)", "2 * alpha)"),
            ("target - used else", "target else"),
            ("ndtri(alpha / 2)", "ndtri(alpha)"),
        ],
    ),
    # ----------------------------------------------------------------------- experiments that replace others
    Group(
        "reproduction/claim.py",
        "test_verdicts.py -k 'replaced'",
        [('return bool(claim.replaces) and entry["fingerprint"] == claim.replaces', "return bool(claim.replaces)")],
    ),
    Group(
        "reproduction/checking.py",
        "test_verdicts.py -k 'was_replaced'",
        [("    if awaited(claim, entry):", "    if False:")],
    ),
    Group(
        "reproduction/quantities.py",
        "test_claims.py -k 'quantities_join'",
        [
            ("max(values[len(self.first) :])", "min(values[len(self.first) :])"),
        ],
    ),
    Group(
        "claims/adacot.py",
        "test_claims.py -k 'quantities_join'",
        [("return values[0] - values[1] / 2", "return values[0] - values[1]")],
    ),
    Group(
        "reproduction/ledger_page.py",
        "test_ledger_page.py",
        [
            ('(estimate["value"] - threshold) * (1 if', '(estimate["value"] - threshold) * (1 if True or'),
            ("list.value && claim", "claim"),
            ("found.sort(key=lambda slug: awaited", "found.sort(key=lambda slug: not awaited"),
            ("pieces += [] if replaced else", "pieces += [] if False else"),
        ],
    ),
    Group(
        "reproduction/page.py",
        "test_ledger_page.py -k 'cost'",
        [('f"{side} or ".startswith(f"{n} or ")', "side.startswith(n)")],
    ),
    # -------------------------------------------------------------------------------------------- schedules
    Group(
        "core/schedules.py",
        "test_schedules.py test_parts.py -k 'schedules or rates or learns or schedule'",
        [
            ("if step > warmup or step >= 1:", "if False:"),
            ('max(progress / warmup, 0.1 if kind == "inverse-sqrt" else 0.01)', "progress / warmup"),
            ("return 1 - left\n", "return left\n"),
            ("0.5 * (1 + math.cos(math.pi * left))", "0.5 * (1 + math.cos(left))"),
            ("left = (progress - warmup) / max(1 - warmup, 1e-12)", "left = progress"),
            ("math.sqrt(warmup / progress) if warmup", "math.sqrt(progress / warmup) if warmup"),
        ],
    ),
    # ------------------------------------------------------------------------------------- preference pairs
    Group(
        "models/language/pairs.py",
        "test_preference_losses.py test_preference_data.py -k 'pair or hand or one_by_one or padding or end_token or measured'",
        [
            ("total / mask.sum(1).clamp(min=1) if length_norm else total", "total"),
            ("if not bool(((count == 2) & (chosen == 1)).all()):", "if False:"),
            ("x[paired & preferred])", "x[paired & ~preferred])"),
            ("(~preferred[: len(example)]).long()", "preferred[: len(example)].long()"),
            ('max(self.max_tokens, batch["action"].shape[1])', "self.max_tokens"),
            ("self._rows[numbers[i]] = values[: lengths[i]].clone()", "self._rows[numbers[i]] = values.clone()"),
            ("if n not in self._rows}", "}"),
            ("if chosen == rejected:", "if False:"),
        ],
    ),
    # ------------------------------------------------------------------------------------ language methods
    Group(
        "methods/language/rloo.py",
        "test_methods.py",
        [
            ("size / (size - 1).clamp(min=1) * (score - mean)", "score - mean"),
            ("leave_one_out(total, group, counted)\n", "leave_one_out(total, group)\n"),
        ],
    ),
    Group(
        "methods/language/grpo.py",
        "test_methods.py test_parts.py",
        [
            ('correction=0 if scale == "population-std" else 1', "correction=0"),
            ('score - mean if scale == "none" else', 'score if scale == "none" else'),
            ("self.group_epsilon, counted)", "self.group_epsilon)"),
        ],
    ),
    Group(
        "methods/language/reinforce_pp.py",
        "test_methods.py",
        [
            ('mask = experience["mask"] & counted[:, None]', 'mask = experience["mask"]'),
            ("raw = return_to_go(reward, mask)", "raw = reward * mask"),
        ],
    ),
    Group(
        "methods/language/remax.py",
        "test_methods.py",
        [
            ("difference = difference.clamp(-clip, clip)", "difference = difference.clamp(max=clip)"),
            ("gamma ** left.to(difference.dtype)", "gamma ** (left - 1).to(difference.dtype)"),
            ("penalty = return_to_go(log_ratio, mask) if kl_to_go else log_ratio", "penalty = log_ratio"),
            ("score - baseline,\n", "score,\n"),
        ],
    ),
    Group(
        "methods/language/capo.py",
        "test_capo.py -k 'not learns_while and not last_bit'",
        [
            ("(objective.abs() < self.objective_bound)", "(objective < self.objective_bound)"),
            ("(policy < self.policy_bound)", "(policy <= 1e9)"),
            ("- (probability * moves).sum(1).square()", ""),
            ("policy = rate * rate / 2 * along.square()", "policy = rate / 2 * along.square()"),
            ("adam = adam.after(gradient / count)", "adam = adam.after(gradient)"),
            ("gradient += pull[keeps].T @ h[keeps]", "gradient += pull.T @ h"),
        ],
    ),
    Group(
        "methods/language/d3s.py",
        "test_d3s.py -k 'not learns and not last_bit and not runs_beside'",
        [
            ("return (1 - progress) * start + progress * end", "return start"),
            (
                "first, second = sums[:, low] + sums[:, -1:] - sums[:, len(x) - count + low]",
                "first, second = sums[:, low]",
            ),
            (
                "descending=True)[: max(1, round(share * len(key)))]",
                "descending=False)[: max(1, round(share * len(key)))]",
            ),
            ('[where].abs() * experience["entropy_at_collection"][where]', "[where].abs()"),
        ],
    ),
    Group(
        "methods/preference/rpo.py",
        "test_preference_family.py -k 'rpo or likelihood or adversary or trl or limits or plain or cannot'",
        [
            ("return self.eta * self.beta if", "return self.eta if"),
            ("if self.aggregation == CUMULATIVE else self.eta", "if True else self.eta"),
            ("term.scale != self.beta", "False"),
            ('"chosen", "whose answers', '"demonstrations", "whose answers'),
        ],
    ),
    Group(
        "core/composing.py",
        "test_preference_streams.py -k 'asked or hypos'",
        [
            ("if part.gives & wanted and part.required() <= given", "if part.required() <= given"),
            ("return where_needed(_moved_into(recipe, part, on))", "return recipe"),
            ("tuple(p for p in recipe.listed(part.stage) if p is not part)", "recipe.listed(part.stage)"),
        ],
    ),
    Group(
        "run_state/language.py",
        "test_preference_streams.py -k before_the_run",
        [('for _, part in recipe.entries() if part.stage == "score")', "for _, part in ())")],
    ),
    Group(
        "methods/preference/tgdpo.py",
        "test_token_guides.py",
        [
            ("self.oracle(experience, counted, context) / self.dpo_beta", "self.oracle(experience, counted, context)"),
            ("values[row, places[torch.randperm(len(places), generator=stream)]]", "values[row, places.flip(0)]"),
            ("*action[row, places].tolist())", ")"),
            ("pairs[n // 2] if", "pairs[n // 4] if"),
            ("if self.shuffled:", "if False:"),
            ("self.shuffled and task.max_tokens < 2:", "False:"),
            ('if self.token_reward == "oracle" and self.dpo_model:', "if False:"),
        ],
    ),
    Group(
        "tasks/language/preferences.py",
        "test_token_guides.py -k digits",
        [
            ("(4 * right - 2) / len(answer) if", "4 * right / len(answer) if"),
            ("-0.25 * max(len(answer) - place, 0)", "0.0"),
            ("worth, legal = worth - 2, False", "worth = worth - 2"),
        ],
    ),
    Group(
        "tasks/language/tables.py",
        "test_token_guides.py -k 'adds'",
        [
            ("return q - value[:, None]", "return q"),
            ("value[state] = (table[state].exp() * q[state]).sum()", "value[state] = q[state].max()"),
        ],
    ),
    Group(
        "methods/preference/tgdpo.py",
        "test_preference_family.py -k 'tgdpo or weights or guid or plain or limit or token'",
        [
            ("torch.where(preferred[:, None], guidance, -guidance)", "guidance"),
            ("weight.clamp(least, 2 - least)", "weight.clamp(min=least)"),
            ("return not self.alpha", "return False"),
            ("guidance=self.alpha * log_ratio", "guidance=log_ratio"),
            (
                'self.beta * experience["guidance"], experience["preferred"], self.min',
                'experience["guidance"], experience["preferred"], self.min',
            ),
            ("self.token_weight(experience) * u", "u"),
            ("(free < 0)", "(kept < 0)"),
        ],
    ),
    Group(
        "methods/preference/hypo.py",
        "test_preference_family.py test_language_lists.py -k 'second_stream or first_token or hypo or two_streams'",
        [
            ("-self.kl_weight * rho", "self.kl_weight * rho"),
            ("-self.kl_weight * rho", "-rho"),
        ],
    ),
    Group(
        "methods/preference/inpo.py",
        "test_preference_family.py -k 'inpo or limits or plain or cannot or guide_is_made'",
        [
            ("(1 - share) * anchor", "anchor"),
            ("anchor = share * experience", "anchor = (1 - share) * experience"),
            ("self.tau > self.eta", "False"),
            ("if self.tau else set()", ""),
            ("ipo_loss(h, self.eta)", "ipo_loss(h, self.tau)"),
        ],
    ),
    Group(
        "parts/dpo_policy.py",
        "test_preference_family.py test_rto.py -k 'guid or tables or scale or limit'",
        [
            ('found - experience["ref_logprob"], 0.0', "found, 0.0"),
            ('if self.off:\n            return ""', 'if False:\n            return ""'),
            ("self.needs if self.off else", "self.needs if True else"),
        ],
    ),
    Group(
        "methods/preference/simpo.py",
        "test_preference_losses.py test_trl_numbers.py",
        [
            ("softplus(gamma - beta * h)", "softplus(gamma + beta * h)"),
            ("softplus(gamma - beta * h)", "softplus(beta * (gamma - h))"),
            ('experience["mask"], length_norm=True)', 'experience["mask"])'),
        ],
    ),
    Group(
        "methods/preference/orpo.py",
        "test_preference_losses.py test_trl_numbers.py",
        [
            ("sure - torch.log(-torch.expm1(sure))", "sure"),
            ("mean_logprob.clamp(max=SUREST)", "mean_logprob"),
            ("self.odds_weight * odds_ratio_loss(h)", "odds_ratio_loss(h)"),
            ('imitate="chosen", aggregation', "aggregation"),
        ],
    ),
    Group(
        "methods/preference/kto.py",
        "test_kto.py test_trl_numbers.py -k 'not labels_are_learned and not pairs_are_two'",
        [
            ("torch.sigmoid(-side * beta * (r - z0))", "torch.sigmoid(-side * beta * r)"),
            ("torch.sigmoid(-side * beta * (r - z0))", "torch.sigmoid(side * beta * (r - z0))"),
            ("((1.0, -1.0), (good, bad))", "((1.0, -1.0), (bad, good))"),
            ("if prompt[j] != prompt[i]), -1)", "), -1)"),
            ("((i - k) % size for k in range(1, size))", "((i + k) % size for k in range(1, size))"),
            ("rows = experience.rows(counted.nonzero()[:, 0])", "rows = experience"),
            ("& fits for name in", "for name in"),
            ('other[name] for name in ("action"', 'own[name] for name in ("action"'),
            ("z0 = r.mean().clamp(min=0)", "z0 = r.mean()"),
            ("torch.where(counted, z0, 0.0)", "torch.where(counted, z0, z0)"),
            ("counted / counted.sum().clamp(min=1)", "counted / len(counted)"),
            ("metrics[name] = value / share", "metrics[name] = value"),
            ("low * (1 - SLACK) <= good / bad <= high * (1 + SLACK)", "low * (1 - SLACK) <= good / bad"),
            ("low * (1 - SLACK) <= good / bad <= high * (1 + SLACK)", "good / bad <= high * (1 + SLACK)"),
            ("self.desirable_weight * bad / good", "bad / good"),
        ],
    ),
    Group(
        "methods/preference/plackett_luce.py",
        "test_plackett_luce.py -k 'not a_run_is_dpos and not of_four_are_learned'",
        [
            ("torch.where(itself | worse, reward", "torch.where(itself | together, reward"),
            ("torch.where(itself | worse, reward", "torch.where(worse, reward"),
            ("& (ranking >= 0)[:, None]", ""),
            ("together & (rank > rank[:, None])", "together & (rank < rank[:, None])"),
            ("worse.any(1) | worse.any(0), ranking", "worse.any(1), ranking"),
            ('torch.where((experience["weight"] != 0).any(1), experience["ranking"], -1)', 'experience["ranking"]'),
            ("* torch.unique(ranking[counted]).numel()", ""),
            ("size = (ranking[:, None] == ranking).sum(1) *", "size = 1 *"),
            ("best, worst = ~worse.any(0), ~worse.any(1)", "best, worst = ~worse.any(1), ~worse.any(0)"),
            ("(reward[:, None] > reward)", "(reward[:, None] < reward)"),
            ("return self.beta * sequence_log_ratio", "return sequence_log_ratio"),
        ],
    ),
    Group(
        "methods/preference/plackett_luce.py",
        "test_plackett_luce.py -k 'of_four_are_learned'",
        [
            ("number // 2 for _, number, _ in members", "number // 2 + 1 for _, number, _ in members"),
        ],
    ),
    Group(
        "tasks/language/rankings.py",
        "test_plackett_luce.py -k 'remember'",
        [
            ("2 * n + side", "2 * n"),
            ("ours = all(name in row for name in (RANKING, *PLACES))", "ours = PLACES[0] in row"),
            ("ours = all(name in row for name in (RANKING, *PLACES))", "ours = RANKING in row"),
            ("(rank, str(row[name]))", "rank"),
            ("sum(other > own for other in order)", "sum(other >= own for other in order)"),
            ("key=lambda response: response[1]", "key=lambda response: -response[1]"),
        ],
    ),
    Group(
        "models/recurrent.py",
        "test_recurrent.py -k 'layer_is or inputs_get or windows_are or values_after or what_acted'",
        [
            ('| ~batch["present"]', ""),
            ("torch.zeros_like(over[:, :1]), over[:, :-1]", "over[:, :1], over[:, :-1]"),
            ("state * keep[:, t]", "state"),
            (
                "fresh + gates[:, size:] * (state - fresh)\n\n    def stepper",
                "state + gates[:, size:] * (fresh - state)\n\n    def stepper",
            ),
            ("found[cut] = self(self.gru.after(", "found[cut] = self(self.gru.after(0 * "),
            ("moment.records[name][:] = state", "moment.records[name][:] = 0"),
            ("state[:] = step(moment.seen, state)", "state = step(moment.seen, state)"),
            ("params[~moment.mask] = BLOCKED", "params[moment.mask] = BLOCKED"),
        ],
    ),
    Group(
        "kernels/gru.py",
        "test_recurrent.py -k 'layer_is or inputs_get'",
        [
            ("mine[:, :size] = by_new * own[t]", "mine[:, :size] = by_new"),
            ("(before[t] - new) * update", "(new - before[t]) * update"),
            ("by_own[t] @ w) * kept[:, t]", "by_own[t] @ w)"),
            ("np.multiply(by_new, reset, out", "np.multiply(by_new, 1, out"),
        ],
    ),
    Group(
        "parts/recurrent.py",
        "test_recurrent.py -k 'windows_are or does_not_fit'",
        [
            ('starts[:, 0] = experience["starts_episode"]', ""),
            ("steps % self.window", "steps < self.window"),
            ('recipe.optimize.minibatch_of != "rows"', "False"),
            ("type(policy) is not MlpActorCritic", "not isinstance(policy, MlpActorCritic)"),
        ],
    ),
    Group(
        "run_state/labels.py",
        "test_kto.py -k 'area_under or judged_by'",
        [
            ("(ahead > 0).double()", "(ahead < 0).double()"),
            ("ahead.abs() <= EQUAL, 0.5", "ahead.abs() <= EQUAL, 0.0"),
            ('r[batch["desirable"]], r[~batch["desirable"]]', 'r[~batch["desirable"]], r[batch["desirable"]]'),
            ("    batch = _derived(run_state, batch, terms)\n", ""),
        ],
    ),
    Group(
        "run_state/language_run_state.py",
        "test_kto.py -k 'never_answered or asked_once'",
        [
            ('if "example" not in experience or', "if"),
            ('self.labelled("train") if "desirable" in experience else self.pairs("train")', 'self.pairs("train")'),
        ],
    ),
    Group(
        "models/language/labelled.py",
        "test_labelled_data.py test_kto.py -k 'batch_of_responses or a_few_held_out or token_ids'",
        [
            ("max(round(most * len(kinds[0]) / len(self)), 1)", "round(most * len(kinds[0]) / len(self))"),
            ('bool(self.rows[n]["label"])', "True"),
        ],
    ),
    Group(
        "methods/preference/sft.py",
        "test_sft.py -k 'trls or weight_0 or two_streams or joined or first_demonstrations'",
        [
            ('return -outputs["logprob"]', 'return outputs["logprob"]'),
            ("start = (context.iteration - 1) * self", "start = context.iteration * len(given) + 1 + 0 * self"),
            ("context.spent.updates * self.sft_rows", "1"),
            ("return self.sft_weight\n", "return 1.0\n"),
            ("if not self.sft_weight:", "if self.sft_weight:"),
            ("if type(recipe.optimize) is Optimize:", "if isinstance(recipe.optimize, Optimize):"),
        ],
    ),
    Group(
        "methods/preference/apo.py",
        "test_apo.py -k 'not gold and not stopped'",
        [
            ("sum((1 - alpha**k) / (1 - alpha) for k in range(1, rounds + 1))", "rounds / (1 - alpha)"),
            ('object.__setattr__(self, "tau", -self.alpha)', 'object.__setattr__(self, "tau", self.alpha)'),
            ("if self.alpha and see.context.run_state.lora is not None:", "if False:"),
            ("if self.alpha and see.context.run_state.lora is not None:", "if see.context.run_state.lora is not None:"),
            ('judged="trained",', 'judged="policy",'),
            ('            Move("before", "trained"),  # pi^_t\n', ""),
            ('reference="round"', 'reference="start"'),
            ('self.alpha * see.models.distance("trained"', 'see.models.distance("trained"'),
        ],
    ),
    Group(
        "methods/language/nash_mp_pg.py",
        "test_nash_mp_language.py -k 'not gold'",
        [
            ('cost = 0.5 - experience["score"]', 'cost = experience["score"] - 0.5'),
            ("cost = cost + self.beta * sequence", "cost = cost - self.beta * sequence"),
            ("cost = cost + self.pull * to_target", "cost = cost - self.pull * to_target"),
            ("cost = cost - cost[counted].mean()", "cost = cost + 1"),
            ('({"ref_logprob"} if self.beta else set())', '{"ref_logprob"}'),
            ('object.__setattr__(self, "tau", self.kappa)', "pass"),
            ('logprob_under("target", experience)', 'logprob_under("reference", experience)'),
        ],
    ),
    Group(
        "phases.py",
        "test_phases.py",
        [
            ("model, judge = (model, here) if phase.judges else (here, judge)", "model, judge = here, judge"),
            ("if judge and not config.rewards", "if not config.rewards"),
            ('if k != "model" or i == 0}', "if True}"),
            ("        if not _is_finished(run):\n", "        if True:\n"),
            ("        check_before(phase)\n", "        pass\n"),
            ("p.name not in judges and", "p.name in judges and"),
            ('r",(?![^()]*\\))"', '","'),
            ("{n: v for n, v in shared.items() if n in names}", "shared"),
        ],
    ),
    Group(
        "run_state/completions.py",
        "test_sft.py -k judged_by_their_likelihood",
        [
            ("-total.sum() / tokens.sum().clamp(min=1)", "-(total / tokens).mean() * 2"),
            ('responses = run_state.completions("test")', 'responses = run_state.completions("train")'),
        ],
    ),
    Group(
        "pretrain/demonstrations.py",
        "test_sft.py -k 'imitated or judged_by or left_out or first_demonstrations or refused or tools_words'",
        [
            ('{"completion": row["chosen"]', '{"completion": row["rejected"]'),
            ('lambda row: None if row["label"] else', 'lambda row: None if not row["label"] else'),
            ("if task.compares_completions and not checker:", "if task.compares_completions:"),
            ("if task.compares_completions and not checker:", "if False:"),
            ("del task.train_rows[count or len(task.train_rows) :]", "pass"),
            ("own=None if all(learned) else learned)", "own=None)"),
        ],
    ),
    Group(
        "tasks/language/formats.py",
        "test_sft.py -k 'trls or refused'",
        [
            ('"prompt": said[:first], "completion": said[first:]}', '"prompt": said[:-1], "completion": said[-1:]}'),
            ("    if not first:\n", "    if False:\n"),
        ],
    ),
    Group(
        "models/language/responses.py",
        "test_labelled_data.py test_kto.py -k 'batch_of_responses or a_few_held_out or token_ids'",
        [
            ("mask[i, : len(r.own)] = torch.tensor(r.own)", "pass"),
            ('check_fits(where, reader, prompt, ids, "response", "row")', "pass"),
        ],
    ),
    Group(
        "tasks/language/labelled.py",
        "test_labelled_data.py -k 'not fit_is_known and not hugging'",
        [
            ("if _kinds(left) == BOTH:", "if True:"),
            ("in {*held, candidate}]", "in {candidate}]"),
            ('one["completion_ended"] = row[f"{side}_ended"]', "pass"),
            ("    if label is None:\n        raise", "    if False:\n        raise"),
            ('"label": side == "chosen"', '"label": side != "chosen"'),
            ('if is_empty(row["completion"]):', "if False:"),
        ],
    ),
    Group(
        "catalogue.py",
        "test_outside_methods.py -k 'one_sentence'",
        [
            ("    if not callable(function):", "    if function is None:"),
            ("    if not isinstance(recipe, Recipe):", "    if False:"),
            ('        if domain == "language":\n            _check_responds(recipe, name)\n', ""),
        ],
    ),
    Group(
        "run_state/language_evaluation.py",
        "test_preference_runs.py -k 'needs_no_reference'",
        [("        run_state.release_reference()\n", "")],
    ),
    Group(
        "run_state/language.py",
        "test_preference_runs.py -k 'needs_no_reference'",
        [('run_state.keeps_reference = "reference" in recipe.required_models()', "run_state.keeps_reference = False")],
    ),
    Group(
        "methods/language/gspo.py",
        "test_gspo.py -k 'not learns'",
        [
            ("torch.exp(total / counted.sum(1).clamp(min=1))", "torch.exp(total)"),
            ("* torch.exp(logprob - logprob.detach())", "* torch.exp(logprob.detach() - logprob.detach())"),
            ('sequence_ratio(log_ratio, experience["weight"] != 0)', 'sequence_ratio(log_ratio, experience["mask"])'),
            ("(stopped & counted).sum(1) / counted.sum(1).clamp(min=1)", "stopped.float()"),
        ],
    ),
    Group(
        "methods/language/cispo.py",
        "test_cispo.py -k 'not learns'",
        [
            ("return ratio.detach().clamp(", "return ratio.clamp("),
            ("else 1 - clip_low, 1 + clip_high)", "else 1 - clip_low, math.inf)"),
            ("-math.inf if clip_low is None else 1 - clip_low", "0.8 if clip_low is None else 1 - clip_low"),
        ],
    ),
    Group(
        "methods/language/p3o.py",
        "test_p3o.py -k 'not learns and not run_of and not a_run'",
        [
            (
                'other.detach() if clip_form == "separate" else (own + other).detach()',
                'other if clip_form == "separate" else (own + other)',
            ),
            ("fixed.exp().clamp(max=math.inf if weight_cap is None else weight_cap)", "fixed.exp()"),
            ("weight * z.clamp(-clip_range, clip_range)) / 2", "weight * z.clamp(-clip_range, clip_range))"),
        ],
    ),
    # ------------------------------------------------------------------------------------------ theory tasks
    Group(
        "tasks/theory/games.py",
        "test_theory_problems.py test_theory_methods.py -k 'known_by_hand or exploitability or solved or not_found or drawn_by'",
        [
            ("return preference @ log_opponent.exp()", "return preference.T @ log_opponent.exp()"),
            ("(log_p.exp() * (log_p - log_q)).sum(-1)", "(log_p.exp() * (log_q - log_p)).sum(-1)"),
            ("best + beta * kl(log_policy, log_reference) - 0.5", "best - 0.5"),
            ("if not left < tolerance:", "if False:"),
            ('generator(self.instance or 0, "matrix-game", "preference"', 'generator(0, "matrix-game", "preference"'),
        ],
    ),
    Group(
        "tasks/theory/uncertainty.py",
        "test_theory_problems.py",
        [
            ('self.level == (0 if self.constraint == "radius" else math.inf)', "self.level == 0"),
            ("values.clamp(max=float(values.min()) + self.level)", "values.clamp(max=self.level)"),
            ("- self.level * (sorted_values - sorted_values[0])", "- self.level * sorted_values"),
            ("centred) - grid * radius", "centred)"),
            (
                "torch.where(lower, x_new, y), torch.where(lower, x, y_new)",
                "torch.where(lower, y, x_new), torch.where(lower, x, y_new)",
            ),
            ("variance / (4 * what.level) if", "variance / what.level if"),
            ("if floor == 0:", "if False:"),
        ],
    ),
    Group(
        "tasks/theory/solving.py",
        "test_finite_mdps.py test_exact_oracles.py",
        [
            ("reward[h] + _expected(transition[h], steps[-1])", "_expected(transition[h], steps[-1])"),
            (
                "q[h] = reward[h] + _expected(transition[h], value[h + 1])",
                "q[h] = reward[h] + _expected(transition[h], value[h])",
            ),
            ("eye - discount * moves", "eye - moves * discount**2"),
            ("q = reward + discount * _expected(transition, value)", "q = reward + _expected(transition, value)"),
            ("share = (moves + torch.eye(moves.shape[-1], dtype=torch.float64)) / 2", "share = moves"),
            ("value = value + (1 - DAMPING) * change", "value = value + 2 * change"),
            ("q = reward + _expected(transition, value) - gain", "q = reward + _expected(transition, value)"),
            ("policy = greedy(-cost)", "policy = greedy(cost)"),
            ("cost = 1 + moves @ steps", "cost = 2 + moves @ steps"),
        ],
    ),
    Group(
        "tasks/theory/finite.py",
        "test_finite_mdps.py",
        [
            ("masked_fill(later == 0, math.inf)", "masked_fill(later < 0, math.inf)"),
            (
                "later = possible.flip(-1).cumsum(-1).flip(-1) - possible",
                "later = possible.flip(-1).cumsum(-1).flip(-1)",
            ),
            ("> 1e-6)", "> 1e6)"),
            ("return value @ initial", "return value.mean(-1)"),
            ("if name not in there:", "if False:"),
        ],
    ),
    Group(
        "rollout/finite.py",
        "test_finite_rollouts.py",
        [
            ("numbers[:, t, 1:2]).sum(1)", "numbers[:, t, :1]).sum(1)"),
            ("(numbers[:, :, 2] < reward)", "(numbers[:, :, 1] < reward)"),
            ("step + 1 == (mdp.horizon or np.inf)", "step == (mdp.horizon or np.inf)"),
            ("if t == 0 and first_actions is not None:", "if first_actions is not None:"),
            ("layer = np.minimum(step, mdp.layers - 1)", "layer = np.minimum(step * 0, mdp.layers - 1)"),
        ],
    ),
    Group(
        "parts/finite.py",
        "test_finite_rollouts.py",
        [
            ('memory["rows"] = before + rows', 'memory["rows"] = rows'),
            ("times = step[:, None] + torch.arange(length)", "times = step[:, None] * 0 + torch.arange(length)"),
            ("taken if self.asked else 0", "taken"),
            ("total = gap * episodes", "total = gap"),
            ("if bool(fresh.any()):", "if False:"),
            ('memory.update(state=int(found["next_state"][0, -1])', 'memory.update(state=int(found["state"][0, -1])'),
            ("times = first + torch.arange(self.length", "times = 0 * first + torch.arange(self.length"),
            ("context.spent.queries += pairs * self.draws", "context.spent.queries += self.draws"),
        ],
    ),
    Group(
        "models/finite.py",
        "test_finite_rollouts.py",
        [
            ("if probabilities.shape != shape:", "if False:"),
            ("((total - 1).abs() < 1e-9)", "(total > 0)"),
        ],
    ),
    Group(
        "core/access.py",
        "test_access.py",
        [
            ("lacking := asked - task.access if asked else asked", "lacking := frozenset()"),
            ("asked = part.required_access()", "asked = part.access"),
        ],
    ),
    Group(
        "core/loop.py",
        "test_finishing.py",
        [
            ("while not context.over:", "while context.progress < 1:"),
            ("evaluate=context.over or", "evaluate=share >= 1 or"),
            ("due = context.over or", "due = share >= 1 or"),
            ("            if context.finished:\n                break\n", ""),
            ('self.context.finished = ""  # what', "# what"),
        ],
    ),
    Group(
        "tasks/theory/mdp.py",
        "test_theory_problems.py",
        [
            (
                "finite_horizon_values(kernel, self.reward, policy)",
                "finite_horizon_values(kernel, 0 * self.reward, policy)",
            ),
            ("if len(rows) and not uncertainty.none:", "if False:"),
        ],
    ),
    Group(
        "tasks/theory/linear_mdp.py",
        "test_theory_problems.py",
        [("self.xi / 4 * signs.sum(1)", "self.xi * signs.sum(1)")],
    ),
    Group(
        "run_state/theory.py",
        "test_theory_methods.py test_streams.py -k 'regret or seeds_are or episode_by_hand or (drawn_twice and dr-rpo)'",
        [
            (
                "_draw(self.task.kernel[h, state, action], draws[h, 1])",
                "_draw(self.task.kernel[h, state, action], draws[h, 0])",
            ),
            ("state = following\n", "pass\n"),
            ("torch.tensor([gap * episodes, episodes]", "torch.tensor([gap, episodes + 1]"),
        ],
    ),
    # ------------------------------------------------------------------------------------------- checkpoints
    Group(
        "runtime/budget.py",
        "test_budget_health.py",
        [
            ("min(1.0, max(float(", "min(1.0, min(float("),
            ('"m": 60, "h": 3600', '"m": 3600, "h": 60'),
            ("value <= 0:", "value < 0:"),
            ('{"k": 1e3, "m": 1e6, "g": 1e9}', '{"k": 1024, "m": 1e6, "g": 1e9}'),
        ],
    ),
    # ------------------------------------------------------------------------------------------------ recipe
    Group(
        "core/part.py",
        "test_recipe.py",
        [
            ("(low is not None and value < low)", "(low is not None and value <= low)"),
            ("(above is not None and value <= above)", "(above is not None and value < above)"),
        ],
    ),
    Group(
        "core/recipe.py",
        "test_recipe.py",
        [
            ("                given |= part.given_within(self)\n        return", "        return"),
            ("chain.index(part) if part in chain else len(chain), measure)", "len(chain), measure)"),
            ("dataclasses.replace(part, **kept)", "part"),
            ("if i not in same[1:])", ")"),
            ("if p.name in other.adds), *other.joins]:", "), *other.joins]:"),
            ("composing.without_orphans(self._changed(where, chain), replaced)", "self._changed(where, chain)"),
        ],
    ),
    # -------------------------------------------------------------------------------------------------- loop
    Group(
        "core/loop.py",
        "test_control_ppo.py -k 'failed_rollout or stopped_anywhere'",
        [
            ("self.run_state.rewind()", "pass"),
            ("self.context.iteration -= 1", "pass"),
            ("context.spent.iterations += 1", "pass"),
        ],
    ),
    Group(
        "core/loop.py",
        "test_loop.py",
        [
            ("self.context.spent, self.context.memories, self.context.stores = spent, memories, stores", "pass"),
            ("if self.context.params_updated:\n            return", "if False:\n            return"),
            ("copy.deepcopy(context.memories)", "context.memories"),
            ('if stage == "select" and experience', 'if stage == "credit" and experience'),
            ("except Diverged:\n                    raise", "except ZeroDivisionError:\n                    raise"),
        ],
    ),
    Group(
        "core/resuming.py",
        "test_control_ppo.py -k 'failed_rollout or stopped_anywhere'",
        [
            ("load_optimizers(newest, loop.context.optimizer, loop.names())", "pass"),
            ('loop.context.memories = state["memories"]', "loop.context.memories = {}"),
            ("loop.notices += folder.cut_back(loop.context.iteration)", "pass"),
            ("loop.run_state.load(newest)", "pass"),
        ],
    ),
    Group(
        "core/resuming.py",
        "test_finishing.py",
        [('str(state.get("finished", ""))', '""')],
    ),
    Group(
        "core/resuming.py",
        "test_loop.py",
        [("loop.context.stores = load_stores(newest)", "pass")],
    ),
    # -------------------------------------------------------------------------------------------- checkpoints
    Group(
        "runtime/checkpoint.py",
        "test_loop.py",
        [
            ("if not path.is_file() or _digest(path) != wanted:", "if False:"),
            ("if not c.is_symlink()][:-keep]:", "if not c.is_symlink()][:-1]:"),
            ('if state.get("format") not in (FORMAT, FIRST_FORMAT):', "if False:"),
            ("found.setdefault(part, {})[key] = tensor", "found[part] = {key: tensor}"),
            ("yield STORES, of_parts", "pass"),
        ],
    ),
    # -------------------------------------------------------------------------------------------- run folders
    Group(
        "runtime/run_folder.py",
        "test_loop.py test_run_folder.py -k 'fails_after or waits'",
        [
            ('if r["iteration"] <= iteration]', 'if r["iteration"] < iteration]'),
        ],
    ),
    Group(
        "models/language/encoding.py",
        "test_chat_questions.py -k 'model_reads or responses_are or is_saved'",
        [
            ("not (chat.template and self._is_plain(prompt))", "not chat.template"),
            ("not (chat.template and self._is_plain(prompt))", "not self._is_plain(prompt)"),
            ("self.tokenizer.init_kwargs[ASKED_AS] = dataclasses.asdict(chat)", "pass"),
            ("self.tokenizer.init_kwargs.pop(ASKED_AS, None)", "pass"),
            ("if len(mark) > 1 and mark in around", "if len(mark) > 1"),
        ],
    ),
    Group(
        "tasks/language/chat.py",
        "test_chat_questions.py -k 'model_reads or other_names or transcript'",
        [
            ('messages[0].get("role") not in ("system", "developer")', "True"),
            ("messages.insert(0,", "messages.insert(1,"),
            ("row = {**row, name: row[theirs]}", "row = {name: row[theirs], **row}"),
        ],
    ),
    # ---------------------------------------------------------------------------------------------- rewards
    Group(
        "run_state/language_rewards.py",
        "test_trl_rewards.py -k 'how_far or tells_and_logs'",
        [
            ("else context.began\n", "else context.spent\n"),
            ("whole * done.updates / done.iterations", "whole"),
            ('get("updates", math.inf)', 'get("steps", math.inf)'),
            ("row[:n] for row, n in zip", "row for row, n in zip"),
            ("= fmean(kept)", "= fmean(values[:0] or [0.0])"),
        ],
    ),
    Group(
        "tasks/language/run_facts.py",
        "test_trl_rewards.py -k 'logs or logged or show_one_name or too_few'",
        [
            ("if len(shown) != size", "if len(shown) < size"),
            ("if math.isfinite(number):", "if True:"),
            ("[None] * size)[rows] = values", "[None] * size)[:] = values"),
            ('f"{reward}/{name}" if name in', "name if name in"),
        ],
    ),
    Group(
        "tasks/language/coroutines.py",
        "test_trl_rewards.py -k coroutine",
        [
            ("if found is None:", "if True:"),
            ("        return None, error", "        raise"),
        ],
    ),
    Group(
        "tasks/language/reward_runner.py",
        "test_rewards.py -k 'not hangs and not dead_service'",
        [
            ("math.fsum(r.weight * part for r", "math.fsum(part for r"),
            ('total[failure.row] = math.nan if self.on_error == "drop" else 0.0', "total[failure.row] = 0.0"),
            ('[{"role": "assistant", "content": text}]', "text"),
        ],
    ),
    Group(
        "tasks/language/calling.py",
        "test_rewards.py -k 'no_finite_number or lists_and_numbers'",
        [
            ('return value if math.isfinite(value) else f"returned {value}"', "return value"),
        ],
    ),
    Group(
        "tasks/language/checkers.py",
        "test_checkers.py test_rewards.py -k 'number or hand or every_way or percent or mathematics'",
        [
            ('return -value if found["sign"] else value', "return value"),
            ("return _value(found[-1]) if found else None", "return _value(found[0]) if found else None"),
            ("return answer.strip() in completion", "return completion.strip() in answer"),
            ("return given == truth / 100 if share else given / 100 == truth", "return given == truth"),
            ("if depth == 0:", "if depth == 1:"),
        ],
    ),
    # ------------------------------------------------------------------------------------- closed-form passes
    Group(
        "models/closed_form.py",
        "test_closed_form.py -k 'layers or updates_in_closed'",
        [
            ("np.subtract(1, output, out=output)", "pass"),
            ("grad_output *= output > 0\n", "pass\n"),
            ("grad_output *= np.minimum(output, 0) + 1", "grad_output *= np.minimum(output, 0)"),
        ],
    ),
    # --------------------------------------------------------------------------------------- command line, page
    Group(
        "cli/responses.py",
        "test_trace.py -k 'texts_of_any_kind or stay_one_line or says or model_reads or model_writes'",
        [
            ("ids.tolist(), skip_special_tokens=False", "ids.tolist(), skip_special_tokens=True"),
            ("line = repr(str(text))[1:-1]", "line = str(text)"),
        ],
    ),
    # ------------------------------------------------------------------------- models, sources, lists of updates
    Group(
        "data/replay.py",
        "test_returns_to_go.py",
        [
            ("max(self.open[lane], self.count - slots)", "self.open[lane]"),
            ("            self.open[lane] = numbers[k] + 1\n", ""),
            ("        kept[RETURN][at] = np.nan\n", ""),
            ('(kept["truncated"][at] & ~kept["rollout_end"][at])', 'kept["truncated"][at]'),
            ("np.argwhere(ends | rests)", "np.argwhere(ends)"),
            ("self._changed.update((episode // self.piece).tolist())", "pass"),
            ("self.open = self._open_then.copy()", "pass"),
            ("self.arrays[RETURN][begins : self.count, lane] = np.nan", "pass"),
            ('self.open = np.array(facts["open"], dtype=np.int64)', "pass"),
        ],
    ),
    Group(
        "data/transitions.py",
        "test_returns_to_go.py",
        [
            ("torch.from_numpy(whole)[recorded.number]", "torch.from_numpy(whole)[: len(recorded.number)]"),
            ("(recorded.steps * scale + entry.reward_shift).numpy()", "recorded.steps.numpy()"),
            ("                begin = end + 1\n", ""),
        ],
    ),
    Group(
        "data/replay.py",
        "test_replay.py",
        [
            ("first = self.count % self.slots", "first = 0"),
            ("self.arrays[name][: steps - room] = x[room:]", "pass"),
            ('kept["truncated"][row] & ~kept["rollout_end"][row]', 'kept["truncated"][row]'),
            ("goes_on = ~over & (last // self.lanes != newest)", "goes_on = ~over"),
            ("(last + self.lanes) % held, last)", "(last + 1) % held, last)"),
            ("np.where(goes_on, discount * gamma, discount)", "discount"),
            ('np.where(kept["terminated"].take(last), np.float32(0), discount)', "discount"),
            (
                '"next_observation": kept["next_observation"].take(last, 0)',
                '"next_observation": kept["next_observation"].take(rows, 0)',
            ),
            ("while not mask[rows].all():", "while False:"),
            (
                "if linked and piece not in self._changed and previous is not None:",
                "if linked and previous is not None:",
            ),
            ('return bool(facts.get("count") == self._saved)', "return True"),
            ("size**self.entry.priority_exponent", "size"),
            ("(weight / weight.max())", "weight"),
            ("if self.count > self.slots:\n            return False", "if False:\n            return False"),
        ],
    ),
    Group(
        "data/priorities.py",
        "test_replay.py",
        [
            (
                "self._write(rows, np.where(counted, self.largest, 0.0))",
                "self._write(rows, np.full(len(rows), self.largest))",
            ),
            ("self.largest = max(self.largest, float(priority.max()))", "pass"),
            ("self._sums[touched] = self._values[touched].sum(1)", "pass"),
            ('self.largest = float(state["largest"][0])', "pass"),
        ],
    ),
    Group(
        "core/updating.py",
        "test_off_policy.py test_drafts.py -k 'plain_loop or phases or finite or hyperparameters or gradient or every'",
        [
            ("elif (number + 1) % step.every == 0 if", "elif number % step.every == 0 if"),
            ("self.take(inner, number * step.gradient_steps + again)", "self.take(inner, number)"),
            ("if limit is not None and size > limit:", "if False:"),
            ("self.models.ask_gradients(update.trains, False)\n        losses", "pass\n        losses"),
            ("check_loss(value, term, update.trains, self.context)", "pass"),
        ],
    ),
    Group(
        "core/list_phases.py",
        "test_epochs.py",
        [("context.optimizer[name].state.clear()", "pass"), ('if memory.get("began", 0) != number:', "if True:")],
    ),
    Group("core/list_phases.py", "test_drafts.py -k 'phases'", [("taken -= phase.optimizer_steps", "pass")]),
    Group(
        "core/updating.py",
        "test_language_lists.py",
        [
            ("(weight if rows is None else weight[rows])", "weight.mean()"),
            ("counts |= self._objective(update, on, see, adds=counts)", "pass"),
            ("self.batch, self.sampled, self.computed, self.acts = own\n", "pass\n"),
        ],
    ),
    Group(
        "run_state/language_run_state.py",
        "test_language_lists.py",
        [
            ('or "reference" in self._moved:', "or False:"),
            ("self._act_by(self.models.policy(self._judged))", "pass"),
            ("            self._act_by(acting)", "            pass"),
        ],
    ),
    Group(
        "core/composing.py",
        "test_language_lists.py test_epochs.py -k 'belong or behind'",
        [
            ("return other.grouped_by == part.grouped_by", "return True"),
            ("credit=(*home.credit, part)", "credit=(part, *home.credit)"),
            ('if part.stage != "credit" or len(able) != 1:', "if True:"),
        ],
    ),
    Group(
        "core/updating.py",
        "test_epochs.py -k 'compared_whatever or are_told_when'",
        [
            ('wants |= {"logprob", "entropy"} & given', "pass"),
            ("term.on_update_end(context.metrics, context)", "pass"),
        ],
    ),
    Group(
        "models/base.py",
        "test_epochs.py -k 'decay'",
        [("weight_decay=entry.weight_decay", "weight_decay=0.0")],
    ),
    Group(
        "parts/credit.py",
        "test_claims.py -k 'plain_return'",
        [
            ("if last[t]:\n                total = 0.0", "if False:\n                total = 0.0"),
            ('ends = experience["terminated"] | experience["truncated"]', 'ends = experience["terminated"]'),
        ],
    ),
    Group(
        "settings.py",
        "test_earlier_names.py",
        [
            ('"domain" if key == "wing"', '"domain" if key == "wings"'),
            ('return _BRITISH.sub(r"\\1iz", name)', "return name"),
            ("if text not in arguments and american(text) in arguments:", "if False:"),
        ],
    ),
    Group(
        "runtime/checkpoint.py",
        "test_earlier_names.py -k 'goes_on'",
        [("if not file.exists():", "if False:")],
    ),
    Group(
        "core/part.py",
        "test_theory_methods.py -k 'bad_input and both'",
        [("return getattr(self, name) if declared else default", "return default")],
    ),
    Group(
        "models/stored.py",
        "test_loop.py -k one_way",
        [("if name not in read or read[name].shape != mine.shape:", "if name not in read:")],
    ),
    Group(
        "core/agreement.py",
        "test_update.py test_epochs.py -k 'not language_model and gap or must_agree or sampler'",
        [
            ("[own].abs().max())", "[own].max())"),
            ("if limit < gap < math.inf:", "if False:"),
        ],
    ),
    Group(
        "core/updating.py",
        "test_epochs.py",
        [
            ('context.generator("minibatches", epoch, *again)', 'context.generator("minibatches", *again)'),
            ("again = () if self.passes == 0 else (self.passes,)", "again = ()"),
            ("elif counted.shape[1] == 1 and bool(counted.all()):", "elif False:"),
            ("told = batch.with_fields(**blanked", "told = batch = batch.with_fields(**blanked"),
            ("elif counted.shape[1] == 1 and bool(counted.all()):", "elif counted.shape[1] == 1:"),
            ("elif counted.shape[1] == 1 and bool(counted.all()):", "elif bool(counted.all()):"),
            ("(number * step.epochs + epoch) * step.minibatches + k", "k"),
            ("self.means.since(kl, before) > step.target_kl", "False"),
            ("if not bool(counted.any()):", "if False:"),
            (
                "if watched and update.trains not in self.changed:\n                self",
                "if False:\n                self",
            ),
            (
                "if watched and update.trains not in self.changed:\n                    ",
                "if False:\n                    ",
            ),
            ("and (name not in batch or name in self.computed)", ""),
            ("self.waiting.append(update)", "self._step([update.trains], passing.joint_clip)"),
            ("steps = fresh_alone(steps)", "return"),
            ('chosen = batch["weight"] != 0\n', 'chosen = batch["weight"] == 0\n'),
            ('return f"{what}/{trains}" if term.name in self.shared else what', "return what"),
            (
                "self.batch, self.sampled, self.computed, self.passing = whole",
                "_, self.sampled, self.computed, self.passing = whole",
            ),
        ],
    ),
    Group(
        "models/base.py",
        "test_drafts.py -k 'ppo_trains_on_codes'",
        [("if own and name in self.actors:", "if False:")],
    ),
    Group(
        "core/update.py",
        "test_epochs.py -k 'source_fills'",
        [
            ("found += [step] if step.towards in trained else []", "found.append(step)"),
            ("on_fresh = on_fresh if isinstance(step.batch, Again) else not step.batch.reads()", "on_fresh = True"),
        ],
    ),
    Group(
        "core/checking.py",
        "test_epochs.py test_off_policy.py -k 'refused or put_in'",
        [
            ("if step.joint_clip is not None and not plain:", "if False:"),
            ("if isinstance(inner, Update | OwnUpdate) and isinstance(inner.batch, Fresh):", "if False:"),
            ("elif isinstance(batch, Fresh) and recipe.collect is None:", "elif False:"),
            ("if recipe.models[name].copied:", "if False:"),
            ('found.add("weight")  # every', "pass  # every"),
            (
                "            part.check_within(recipe)\n        if isinstance(step, Update):",
                "        if isinstance(step, Update):",
            ),
        ],
    ),
    Group(
        "parts/control.py",
        "test_epochs.py -k 'refused or weights_of_ppo or changes_nothing'",
        [
            ('gives - {"behaviour_logprob"} | acting.acting_gives', "gives"),
            ('critic.values(batch[f"final_{self.observation}"][cut])', "0.0"),
            ("if acting is not None and self.scale_reward and not acting.scales_rewards:", "if False:"),
        ],
    ),
    Group(
        "parts/replayed.py",
        "test_epochs.py -k 'refused'",
        [('return given - {"behaviour_logprob"} if self.random_steps else given', "return given")],
    ),
    Group(
        "models/actor_critic.py",
        "test_epochs.py -k 'masked or weights_of_ppo'",
        [("(MaskedActor if masked else DistributionActor)(policy)", "DistributionActor(policy)")],
    ),
    Group(
        "kernels/stacked_layers.py",
        "test_off_policy.py -k 'separate or rounding or grad_output'",
        [
            ("if layer < last:", "if False:"),
            ("torch.sum(grad_output, 0, out=biases[k])", "biases[k] = grad_output[0]"),
            (
                "own, below = own[rows], [x, *(h[rows] for h in below[1:])]",
                "own = own[rows]; below = [x, *(h[: len(rows)] for h in below[1:])]",
            ),
            ("gradient_x.index_add_(0, rows, by_input)", "pass"),
            ("gradient_x += by_input", "gradient_x = by_input"),
            ("before.mul_(1 - output * output)", "pass"),
        ],
    ),
    Group(
        "core/minibatches.py",
        "test_language_lists.py",
        [("found[name][rows] = x.detach()", "pass")],
    ),
    Group(
        "kernels/passes.py",
        "test_passes.py -k 'separate or first_members or stays or follow'",
        [
            ("array += self.bias_array", "pass"),
            ("torch.sum(grad_output, 0, out=self.bias_grad)", "pass"),
            ("torch.mul(grad_output, self.transposed, out=out)", "out.copy_(self.transposed)"),
            ("found.index_add_(0, rows, by_input)", "found[: len(rows)] += by_input"),
            ("found += by_input", "found = by_input"),
            ("before.mul_(1 - output * output)", "pass"),
            ("if i < last:", "if True:"),
            (
                "for k in range(members):\n            self._forward",
                "for k in range(self.members):\n            self._forward",
            ),
            ("return self._at == (self._place(), self._first.grad is not None)", "return True"),
            ("if found is None or len(found) != rows:", "if found is None:"),
            (
                "before = scratch(len(output), output.shape[1], -1 - i % 2)",
                "before = scratch(len(output), output.shape[1], 0)",
            ),
        ],
    ),
    Group(
        "models/squashed.py",
        "test_passes.py -k 'models_without'",
        [
            ("* -2 + 2 * column", "* -2"),
            ("by_log_std = -column", "pass"),
            ("by_before * self.noise * self.std", "by_before * self.noise"),
            ("by_log_std * free", "by_log_std"),
            ("by_before = by_before + tanh_backward(by_action, self.action)", "by_before = by_before + by_action"),
            ('tanh_backward(grad_outputs["mode"], self.action)', 'grad_outputs["mode"]'),
        ],
    ),
    Group(
        "models/critics.py",
        "test_passes.py -k 'models_without or subclass or dueling or written'",
        [
            ("by_input[:, -size:].reshape", "by_input[:, :size].reshape"),
            (
                "values.reshape(-1, values.shape[-1]).t().contiguous().unsqueeze(-1)",
                "values.reshape(values.shape[-1], -1, 1)",
            ),
            ("None if self.dueling else self.network.passes_to_train()", "self.network.passes_to_train()"),
            ("else by_values.clone()", "else torch.zeros_like(by_values)"),
        ],
    ),
    Group(
        "models/base.py",
        "test_passes.py -k 'subclass'",
        [('setattr(cls, "closed_form", Network.closed_form)', "pass")],
    ),
    Group(
        "core/part.py",
        "test_passes.py -k 'inherited'",
        [('setattr(cls, "grad_summand", Term.grad_summand)', "pass")],
    ),
    Group(
        "core/agreement.py",
        "test_passes.py -k 'refused'",
        [
            ("if differs(found.reshape(-1) / size, right.reshape(-1) / size):", "if False:"),
            ("stream = see.generator.get_state()", "stream = torch.Generator().manual_seed(1).get_state()"),
        ],
    ),
    Group(
        "parts/replayed.py",
        "test_passes.py -k 'written or share'",
        [
            ('{"q": error * weights.unsqueeze(-1)}', '{"q": error}'),
            ("(-weights / is_least.sum(-1))", "(-weights)"),
            ('return total, {"sampled_logprob": temperature * weights,', 'return total, {"sampled_logprob": weights,'),
            ('{"log_number": by_number}', '{"log_number": -by_number}'),
        ],
    ),
    Group(
        "core/updating.py",
        "test_passes.py test_offline_methods.py -k 'beside or cql_is'",
        [
            ("if not all(term.is_written for term in terms):", "if False:"),
            ("closed = None if update.also else self", "closed = self"),
            ("self.models.zero_gradients(update.trains)", "pass"),
            ("see, adds=counts)", "see)"),
        ],
    ),
    Group(
        "models/squashed.py",
        "test_off_policy.py -k 'card or exact or integrates'",
        [("shrinks = 2 * (math.log(2) - before", "shrinks = (math.log(2) - before")],
    ),
    Group(
        "models/squashed.py",
        "test_off_policy.py -k 'card or exact or integrates or fast_actors or own or fill'",
        [("found += middle", "pass")],
    ),
    Group(
        "models/policies.py",
        "test_off_policy.py -k 'card or exact or integrates or fast_actors or own or fill'",
        [
            (
                "return torch.tanh(before), squashed_logprob(before, noise, log_std)",
                "return before, squashed_logprob(before, noise, log_std)",
            ),
            ("(before - mean) * (-log_std).exp()", "(before - mean)"),
            (
                "return np.tanh(said[:, : self.numbers] + deviation * noise)",
                "return np.tanh(said[:, : self.numbers] + noise)",
            ),
        ],
    ),
    Group(
        "parts/replayed.py",
        "test_off_policy.py -k 'plain_loop or card or buffer or time_limit'",
        [
            (
                "return reward + discount * (value - temperature * logprob)",
                "return reward + discount * (value + temperature * logprob)",
            ),
            (
                'return -outputs["log_number"] * (experience["sampled_logprob"] + target)',
                'return outputs["log_number"] * (experience["sampled_logprob"] + target)',
            ),
            ('see["temperature"]() * outputs["sampled_logprob"] - value', "-value"),
            ("return weight / weight.numel()", "return weight"),
            (
                'next_observation=torch.where(cut.unsqueeze(-1), experience["final_observation"], following)',
                "next_observation=following",
            ),
        ],
    ),
    Group(
        "models/actor.py",
        "test_action_masks.py",
        [
            ("params[~moment.mask] = BLOCKED", "pass"),
            ('params = torch.where(batch["action_mask"], params, torch.full_like(params, float(BLOCKED)))', "pass"),
            ('return np.where(batch["action_mask"].squeeze(1).numpy(), params, BLOCKED)', "return params"),
        ],
    ),
    # ------------------------------------------------------------------------------------------- learning from data
    Group(
        "tasks/control/recorded.py",
        "test_transitions.py -k 'rows_are or without_what or bad_arrays or beyond or choices'",
        [
            ("after = np.where(terminated, which, which + 1)", "after = which + 1"),
            ("(truncated | (which == steps - 1))", "(which == steps - 1)"),
            ("~(finite[before] & finite[after])", "~finite[before]"),
            ("action = action.clip(-1, 1)", "action = action"),
            ("- start\n", "\n"),
            ("begin = end + 1", "begin = end"),
        ],
    ),
    Group(
        "data/transitions.py",
        "test_transitions.py -k 'rows_are or uniform or range_of'",
        [
            ("(~recorded.terminated).float()", "recorded.terminated.float()"),
            ("held.after.index_select", "held.before.index_select"),
            ("recorded.reward * scale + entry", "recorded.reward + entry"),
            ("torch.randint(len(self.reward), (count,)", "torch.randint(len(self.reward) - 1, (count,)"),
        ],
    ),
    Group(
        "methods/control/iql.py",
        "test_offline_methods.py -k 'numbers or iql_is'",
        [
            ("1 - expectile, expectile", "expectile, 1 - expectile"),
            (".exp().clamp(max=largest)", ".exp()"),
            ('(batch["observation"], batch["action"]).amin(-1)', '(batch["observation"], batch["action"]).amax(-1)'),
        ],
    ),
    Group(
        "methods/control/pmoe.py",
        "test_pmoe.py -k 'card or best_expert or ties or costs_less or apart'",
        [
            ("(best - weights).square().mean(-1)", "(best - weights).square().sum(-1)"),
            ("best.to(torch.int64).argmax(-1)", "best.to(torch.int64).argmin(-1)"),
            ("(best * (1 - see.draw.uniform(*best.shape))).argmax(-1)", "best.to(torch.int64).argmax(-1)"),
            ("drawn - drawn.mean()", "drawn"),
            ('"...i,...j,...ij->..."', '"...i,...i,...ij->..."'),
        ],
    ),
    Group(
        "methods/control/jsrl.py",
        "test_jsrl.py -k 'card or horizon or onto or refused'",
        [
            ("(stages - k) // stages", "(stages - k + 1) // stages"),
            ("best - tolerance * abs(best)", "best * (1 - tolerance)"),
            ("guided = step < horizon", "guided = step <= horizon"),
            ("np.where(high > low, high - low, 1)", "high - low"),
            ("if kind is None or collect is None:", "if collect is None:"),
        ],
    ),
    Group(
        "methods/control/pdppo.py",
        "test_pdppo.py -k 'larger or lesser or plain_pytorch or before'",
        [
            ("torch.minimum(*values.values())", "torch.maximum(*values.values())"),
            ("value = torch.minimum(value, other(batch[other.observes]))", "pass"),
            ("if self.after_decision:", "if True:"),
            ("self.dual_clip).mean(-1)", "self.dual_clip).sum(-1)"),
        ],
    ),
    Group(
        "methods/control/props.py",
        "test_props.py -k 'card or ros or clipped or last_batches or plain_pytorch or masks'",
        [
            ("frequency = pair.bincount()[pair].double() / cell", "frequency = cell.bincount()[cell].double() / cell"),
            ("stays.shape[1] < capacity", "True"),
            ('experience["weight"] * experience["stays"]', 'experience["weight"]'),
            ('{"logprob": ratio * weights * (ratio >= loss)}', '{"logprob": ratio * weights}'),
            (
                "divergence(params[0], phi.distribution, params[1])",
                "divergence(params[1], policy.distribution, params[0])",
            ),
            ('if "action_mask" in batch:', "if False:"),
            ('found["logprob"].detach()', 'batch["behaviour_logprob"]'),
        ],
    ),
    Group(
        "core/updating.py",
        "test_props.py -k 'too_far or last_turn or plain_pytorch'",
        [
            ("if not counts or self.stopped:", "if not counts:"),
            ("(self.passing is not None and self.passing.watches) or self.acts", "self.acts"),
            ("else self.context.turn in (None, self.context.turns - 1):", "else self.context.turn in (None, 0):"),
        ],
    ),
    Group(
        "parts/control.py",
        "test_props.py -k 'pieces or last_batches'",
        [
            ('"truncated": kept["truncated"] & ~goes_on,', ""),
            ('kept["rollout_end"] & ~new["starts_episode"].unsqueeze(1)', 'kept["rollout_end"]'),
            ("[:, over - 1] if over else", "[:, over] if over else"),
        ],
    ),
    Group(
        "models/base.py",
        "test_props.py -k plain_pytorch",
        [("module.closed_form_acting(wants, actor or module.actor())", "None if actor is None else found")],
    ),
    Group(
        "core/minibatches.py",
        "test_epochs.py",
        [("if bool(counted.all()):\n        return outputs, batch", "if True:\n        return outputs, batch")],
    ),
    Group(
        "tasks/control/corner_grid.py",
        "test_props.py -k authors",
        [
            ("MOVES = ((-1, 0), (1, 0)", "MOVES = ((1, 0), (-1, 0)"),
            ("min(max(row + down, 0), SIZE - 1)", "(row + down) % SIZE"),
            ("self.taken >= LIMIT and not ended", "False"),
        ],
    ),
    Group(
        "models/distributions.py",
        "test_props.py -k divergences",
        [
            ("others.log_softmax(-1))).sum(-1)", "others.log_softmax(-1))).mean(-1)"),
            ("softplus(others) - softplus(params)", "softplus(params) - softplus(others)"),
            ("apart = (params - others) * (-other.log_std).exp()", "apart = (params - others) * (-self.log_std).exp()"),
        ],
    ),
    Group(
        "methods/control/expo.py",
        "test_expo.py -k 'radius or worse or targets or gradient or edit'",
        [
            (".mean(-1).argmax(-1)", ".mean(-1).argmin(-1)"),
            ("both = torch.cat([base, (base + edit)", "both = torch.cat([(base + edit).clamp(-1, 1), (base + edit)"),
            ('if self.follows == "best":', "if True:"),
            ("taken(both, models", "taken(both, 0 * models"),
            ("self.radius * before.tanh()", "before.tanh()"),
            ("shape[-1] / 2\n", "shape[-1] * 1.0\n"),
        ],
    ),
    Group(
        "methods/control/pa_rl.py",
        "test_pa_rl.py -k 'check or kept or operators or imitated or targets'",
        [
            ("better = value.mean(-1) > most", "better = value.mean(-1) > -math.inf"),
            ("size * back(", "-size * back("),
            (").clamp(-1, 1)", ")"),
            (".topk(kept, -1)", ".topk(kept, -1, largest=False)"),
            ("self.kept - 1), action], -2)", "self.kept), action], -2)"),
            ("action[..., 0, :]", "action[..., 1, :]"),
            ("+ math.log(times)", ""),
            ("torch.maximum(policy, least", "torch.minimum(policy, least"),
            ('torch.where(batch["return_known"], batch["return_to_go"], -math.inf)', 'batch["return_to_go"]'),
            ("2 * see.draw.uniform(*action", "see.draw.uniform(*action"),
            (".cumsum(-1)[..., :-1]", "[..., :-1]"),
            ("if self.kept > 1:", "if True:"),
        ],
    ),
    Group(
        "models/denoiser.py",
        "test_expo.py -k cosine",
        [("(t / steps + 0.008) / 1.008", "(t / steps) / 1.008")],
    ),
    Group(
        "models/imitating.py",
        "test_imitating.py",
        [
            ("torch.arange(self.numbers) < number", "torch.arange(self.numbers) <= number"),
            ("known = torch.where(torch.arange(self.numbers) < number, action, 0)", "known = torch.zeros_like(action)"),
            ("(place[..., number, None] >= below)", "(place[..., number, None] < below)"),
            ("which[number] = 1", "which[0] = 1"),
            ("logits.argmax(-1)", "logits.argmin(-1)"),
            (".abs().argmin(-1)", ".abs().argmax(-1)"),
            ("known, total = self.values[near]", "known, total = batch['action']"),
            (".exp() * noise).clamp(-1, 1)", ".exp() * noise)"),
        ],
    ),
    Group(
        "parts/imitating.py",
        "test_expo.py -k 'targets'",
        [
            (".amin(-1)", ".mean(-1)"),
            ('batch["discount"] * value', "value"),
            ('see["q_target"]', 'see["q"]'),
        ],
    ),
    Group(
        "models/denoiser.py",
        "test_denoiser.py -k 'not learns'",
        [
            ("(1 - beta).sqrt() * (1 - before) * noisy", "(1 - beta).sqrt() * (1 - kept) * noisy"),
            ("return mean, (beta * (1 - before) / (1 - kept)).sqrt()", "return mean, beta.sqrt()"),
            ("(2 * t[1:] - 1) / (2 * steps**2)", "(2 * t[1:]) / (2 * steps**2)"),
            ("kept.sqrt() * action + (1 - kept).sqrt() * noise", "kept * action + (1 - kept) * noise"),
            ("share = (step + 1) / self.steps", "share = step / self.steps"),
            ("return following if step else following.clamp(-1, 1)", "return following"),
            ("following + guide(step, found[-1])", "following + guide(step, following)"),
            ("deviation = deviation.clamp(min=least)", "deviation = deviation + least"),
        ],
    ),
    Group(
        "methods/control/diffusion_ppo/__init__.py",
        "test_diffusion_ppo.py -k 'card or plain_loop or without_beta or population or units or pulls or q_are'",
        [
            ("round(share * iterations) - 1", "round(share * iterations)"),
            ("step * (cap / step.norm(dim=-1, keepdim=True).clamp(min=cap))", "step.clamp(-cap, cap)"),
            ("(beta * value).softmax(-1)", "value.softmax(-1)"),
            ("raw.std(-2, correction=0)", "raw.std(-2)"),
            ("raw.mean(-2), raw.std(", "guided.mean(-2), raw.std("),
            ("float(1 - level[number] / level[-1])", "1.0"),
            ("back(torch.full_like(value, 1 / value.shape[-1]))", "-back(torch.ones_like(value))"),
            ("proposal_std=half * std", "proposal_std=std"),
            ("- 1 - ratio) / 2", "- ratio) / 2"),
            ('batch["observation"].unsqueeze(-2), see).mean(-1)', 'batch["observation"].unsqueeze(-2), see).sum(-1)'),
            ('torch.where(batch["truncated"], final, following) * ~batch["terminated"]', "following"),
        ],
    ),
    Group(
        "methods/control/diffusion_ppo/__init__.py",
        "test_diffusion_ppo.py -k 'bit or ask_for_nothing or start_by or what_it_cannot'",
        [
            ('0 * outputs["logprob"]', '0.1 * outputs["logprob"]'),
            ("(self.reads if self.coef else set())", "self.reads"),
            ('reset=("policy",)', "reset=()"),
            ("optimizer_steps=1, collects=False", "optimizer_steps=1"),
            ('if recipe.models["policy"].setting("normalize_observation", False):', "if False:"),
        ],
    ),
    Group(
        "methods/control/diffusion_ppo/prior.py",
        "test_diffusion_ppo.py -k 'card or levels or factors or units or bridges'",
        [
            ("torch.zeros(rank, outputs)", "torch.randn(rank, outputs, generator=generator)"),
            ("self.level[-1] * noise", "noise"),
            ("rho * noisy + (1 - rho) * predicted", "rho * predicted + (1 - rho) * noisy"),
            ("following * (1 - rho).sqrt()", "following"),
            ("return self.level[step.long()]", "return step.float()"),
            ("math.floor(self.adapter_share", "math.ceil(self.adapter_share"),
            ("sub_(rate * gradient)", "add_(rate * gradient)"),
            ("/ half).clamp(-1, 1)", "/ half)"),
            ("torch.where(high > low, (high - low) / 2, 1.0)", "(high - low) / 2"),
            ("self.sigma_min if self.levels > 1 else self.sigma_max", "self.sigma_min"),
            ("if not self.adapter_rate:", "if False:"),
        ],
    ),
    Group(
        "tasks/control/wall_point.py",
        "test_expo.py -k 'wall or demonstrations'",
        [
            ("if not (np.abs(moved) < WALL).all():", "if True:"),
            ("0.0 if reached else -1.0", "1.0 if reached else -1.0"),
            ("(1, 1 - 2 * (k % 2))", "(1, 1)"),
        ],
    ),
    Group(
        "methods/control/npg_igt.py",
        "test_npg_igt.py -k 'identity or quadratic or ahead or itself or constant or scale'",
        [
            ("(1 - eta) / eta * (point - before)", "eta * (point - before)"),
            ("** 0.8", "** 0.5"),
            ("direction / (direction.norm() + 1e-12)", "direction"),
            ("if self.extrapolates else policy", "if True else policy"),
        ],
    ),
    Group(
        "methods/control/harpg.py",
        "test_npg_igt.py -k 'hessian or second_stream or scale'",
        [
            ("total += flat(phi[episode], False) * score", "pass"),
            ("if self.normalized else direction)", "if True else direction)"),
        ],
    ),
    Group(
        "parts/trajectories.py",
        "test_npg_igt.py -k 'discount or hessian'",
        [("gamma ** torch.arange(last - first)", "gamma ** torch.arange(first, last)")],
    ),
    Group(
        "tasks/control/lora_channel.py",
        "test_airllm.py -k 'cards or verifier or minus_the_loss or shown or outlives or rules'",
        [
            ("inputs + outputs + 1 for", "inputs + outputs for"),
            ("share * (highest - LEAST) + 1e-6", "share * (highest - LEAST)"),
            ("arrived, reward, self.t = cost <= 1,", "arrived, reward, self.t = cost < 1,"),
            ("            reward -= PENALTY * cost", "            pass"),
            ("            self._draw_batch()\n        else:", "        else:"),
            (
                "        if self.t >= STEPS:\n            self.accuracy[0]",
                "        if True:\n            self.accuracy[0]",
            ),
            ("    if seconds > SECONDS:", "    if seconds > 2 * SECONDS:"),
            ("problem.unit.sum()) * (fits + 1), snr", "problem.unit.sum()) * fits, snr"),
            ("[[*problem.changed], others]", "[others, [*problem.changed]]"),
        ],
    ),
    Group(
        "tasks/control/svd_lora.py",
        "test_airllm.py -k 'steps_of_the_adapter or untrained or other_problem'",
        [
            ("(through * z).sum(0) * mask[layer]", "(through * z).sum(0)"),
            ("inner @ self.frozen.weights[layer] + (through * kept) @ q[layer]", "inner @ self.frozen.weights[layer]"),
            ("active, still = p * mask[:, None, :]", "active, still = p"),
            ("weight = 4 * ORTHOGONALITY", "weight = 2 * ORTHOGONALITY"),
            ("self.vector *= 1 - STEP * DECAY", "pass"),
            ("STEP / (1 - BETAS[0] ** self.taken[0])", "STEP"),
            ("np.zeros(layers * rank), q", "np.full(layers * rank, 0.1), q"),
        ],
    ),
    Group(
        "methods/control/airllm/denoiser.py",
        "test_airllm.py -k 'card or chain or knows or tenth'",
        [
            ("free + guidance * (told - free)", "told + guidance * (told - free)"),
            (".clamp(-1, 1)", ""),
            ("(1 - before).sqrt() * noise", "(1 - kept).sqrt() * noise"),
            (
                ", self.kept[grid[at + 1]] if at + 1 < steps else None)",
                ", self.kept[grid[at + 1]] if at + 2 < steps else None)",
            ),
            (">= UNCONDITIONAL", "< UNCONDITIONAL"),
            ('batch["action"][..., : self.code].tanh()', 'batch["action"][..., : self.code]'),
            ("kept.sqrt() * target + (1 - kept).sqrt() * noise", "kept * target + (1 - kept) * noise"),
        ],
    ),
    Group(
        "methods/control/airllm/expander.py",
        "test_airllm.py -k 'ppo_on_the_ranks or decoder_makes or trains_on or judged or finite or exported'",
        [
            ("both[:, : self.code].tanh()", "both[:, : self.code]"),
            ("if not np.isfinite(found).all():", "if False:"),
            ("    is_policy = True", "    is_policy = False"),
            ("return Actor.greedy(self, masked)", "return super().greedy(masked)"),
        ],
    ),
    Group(
        "methods/control/airllm/__init__.py",
        "test_airllm.py -k 'weigh or refused or logged or decoder_makes or ppo_on_the_ranks'",
        [
            ("reward.std(correction=0)", "reward.std()"),
            (".clamp(0.1, 10)", ""),
            ('if self.decoder == "none" and code != numbers:', "if False:"),
            ('memory.get("megabits", 0.0) + ', ""),
            ('experience["accuracy"][:, -1]', 'experience["accuracy"]'),
        ],
    ),
    Group(
        "tasks/control/lot_sizing.py",
        "test_pdppo.py -k 'period or random_machines or published'",
        [
            ("- changed * SETUP_LOSS", ""),
            ("LOST_SALE * float(-left.clip(max=0).sum())", "LOST_SALE * float(left.clip(max=0).sum())"),
            ("setup[machine] = item", "pass"),
        ],
    ),
    Group(
        "models/mixtures.py",
        "test_pmoe.py -k 'density or draw or best_expert or gumbel'",
        [
            ("torch.logsumexp(self.log_weights(observation) + each, -1)", "torch.logsumexp(each, -1)"),
            ("hard + soft - soft.detach()", "hard"),
            ("(place[:, None] >= weights.cumsum(1)[:, :-1])", "(place[:, None] <= weights.cumsum(1)[:, :-1])"),
            ("weights.argmax(1)", "weights.argmin(1)"),
        ],
    ),
    Group(
        "methods/control/cql.py",
        "test_offline_methods.py -k 'numbers or integral or cql_is'",
        [
            ("value - logprob.unsqueeze(-1)", "value"),
            (" - math.log(len(value))", ""),
            ("-shape[-1] * math.log(2)", "0.0"),
            ('everywhere - outputs["q"]', "everywhere"),
        ],
    ),
    Group(
        "run_state/control_judging.py",
        "test_judged.py",
        [
            ("if theirs != ours:", "if False:"),
            ("inner = acting[model] if entry.acting else", "inner ="),
            ("_fitting(state.task, entry.task, name) if entry.task else", ""),
            ("actor = entry.actor(inner,", "actor = (lambda inner, making: inner)(inner,"),
        ],
    ),
    Group(
        "models/from_run.py",
        "test_from_run.py",
        [
            ("            module.hold()\n", "            pass\n"),
            ("    policy.load_state_dict(weights)\n", "    pass\n"),
            ("if theirs != ours:", "if False:"),
            ("self.policy.normalize(batch[", "(lambda x: x.astype('float32'))(batch["),
            ("if kind is None or kind is FromRun:", "if kind is None:"),
            ("if run.normalizes and not", "if False and not"),
        ],
    ),
    Group(
        "methods/control/rlpd.py",
        "test_offline_methods.py -k 'least_of_two or rlpd_is'",
        [("[: self.subset]", "[: self.subset + 1]"), ("return q.mean(-1)", "return q.amin(-1)")],
    ),
    Group(
        "rollout/recording.py",
        "test_record.py -k 'what_happened or shares or without_end or turn'",
        [
            ("[copy.deepcopy(given[0])] if", "[given[0]] if"),
            ("dice[at] < self.random", "dice[at] > self.random"),
            ("noise[at] if self.sampled else None", "noise[at]"),
            ("not made.terminated[0]", "True"),
        ],
    ),
    # ------------------------------------------------------------------------------------------- requests and charts
    Group(
        "request.py",
        "test_request.py -k 'four_doors or composed_once or with_their_line or says_nothing'",
        [
            ("recipe = recipe.set(name, value)", "pass"),
            ("_check_names(frontend, hyperparameters, names, kinds)", "pass"),
            ("with frontend.place(name):", "with contextlib.nullcontext():"),
            ("with frontend.settings():", "with contextlib.nullcontext():"),
            ("config = RunConfig.stated(", "config = RunConfig.from_dict("),
        ],
    ),
    Group(
        "recipe_file.py",
        "test_request.py -k 'beside_a_file or with_their_line or no_recipes or names_runs or file_of_a_method'",
        [
            ("    settings |= asked.settings\n", ""),
            ("key.start_mark.line + 1", "key.start_mark.line"),
            ("if name in found:", "if False:"),
            ("    check_code(RunConfig(method=named, **own), file, trust_code=trust_code)\n", ""),
            ("{**hyperparameters, **{_plain(k)", "{**{}, **{_plain(k)"),
            ("bare = all(v == first for v in values.values()) and", "bare = True and"),
        ],
    ),
    Group(
        "report/drawing.py",
        "test_drawing.py",
        [
            ("_text(str(text))\n", "str(text)\n"),
            ("own = dict(colours)", "own: dict[str, str] = {}"),
        ],
    ),
    Group(
        "report/draw.js",
        "test_drawing.py",
        [
            ("scale(y.domain, height - bottom, top)", "scale(y.domain, top, height - bottom)"),
            ("labels[i - 1].place + step)", "labels[i - 1].place)"),
            ("labels[i + 1].place - step)", "labels[i + 1].place)"),
            ("return { room: alone ? names : 0, lined: false };", "return { room: 0, lined: false };"),
            ("[x, , high]) => [x, high]", "[x, , high]) => [x, high * 1.1]"),
        ],
    ),
    Group(
        "report/draw.js",
        "test_report_page.py -k 'lie_on or long_names or outside_its_chart'",
        [
            ("widthOf(lines[lines.length - 1], font) + text(item) + 14 > width", "false"),
            ("lines.length * LINE + 14", "0"),
            ("step + (lines.length - 1 + (below ? 1 : 0)) * LINE", "step"),
            ("(i || fits(word)) && fits(joined)", "fits(joined)"),
            (": [...word]);", ": [word]);"),
            (
                "const stackedHeight = (chart) => stackedNames(chart).heads.reduce((sum, h) => sum + h.height, 52);",
                "const stackedHeight = ({ items }) => items.length * 54 + 52;",
            ),
        ],
    ),
    Group(
        "run_state/user_data.py",
        "test_left_out.py -k 'told_apart or known_before'",
        [
            ("why, wrong = no_room, str(error)", "wrong = str(error)"),
            ("why, wrong = (\n                no_room,", "why, wrong = (\n                UNUSABLE,"),
        ],
    ),
    # ---------------------------------------------------------------------------- regret, and policy classes
    Group(
        "methods/theory/loop_amdp.py",
        "test_loop_amdp.py",
        [
            ("limit, found = 3 * len(n) * self.width", "limit, found = 3 * self.width"),
            ("now = n[pair] * (claimed[pair]", "now = (claimed[pair]"),
            ("return n * (self.backed_up - backup).square()", "return n * self.backed_up.square()"),
            ("self.highest + value.max())", "9 + value.max())"),
            ("best.min() + self.span", "best.min() + 9 * self.span"),
            ("value = value + 0.9 * min(1.0, self.patience / (sweep + 1)) * change", "value = value + change"),
            ("np.where(n > 0, reward + moves @ value, np.inf)", "reward + moves @ value"),
            ("return len(pairs) if last is None else last + 1", "return len(pairs)"),
            ("followed.seen.copy_(counts.visits[0].sum(-1))", "pass"),
            ("elif followed.width == 0:", "elif False:"),
        ],
    ),
    Group(
        "methods/theory/loop_amdp_models.py",
        "test_loop_amdp_models.py",
        [
            ("own + others) - 2 * total[:, None])", "own + others) - total[:, None])"),
            ("self.claims[:, None], self.backups", "self.backups, self.claims[:, None]"),
            ('fmsa", moves, self.values)', 'mfsa", moves, self.values)'),
            ("errors[self.number] - errors).cumsum(1)", "errors[self.number] - errors)"),
            (">= 3 * self.width", ">= self.width"),
            ("if self.number < 0:", "if False:"),
            ("max(self.width, float(excess.min()) + 1e-9)", "self.width"),
            ("int(luck * len(fits)) if", "0 if"),
            ("int(self.gains[fits].argmax())", "int(self.gains[fits].argmin())"),
            ("if not mdp.models:", "if False:"),
        ],
    ),
    Group(
        "methods/theory/loop_amdp_linear.py",
        "test_loop_amdp_linear.py -k 'not stream and not sooner and not once'",
        [
            ("sizes > APART * max(", "sizes > 0.5 * max("),
            ("basis.T @ (n[:, None] * basis))\n        there", "basis.T @ basis)\n        there"),
            ("there] / np.sqrt(sizes[there])", "there] / sizes[there]"),
            ("unseen <= APART * (basis**2).sum(-1) + APART**2", "unseen <= 2"),
            ("+ APART**2", ""),
            ("common + self.seen_by(n, basis)[0] @ (total - n * common)", "self.seen_by(n, basis)[0] @ total"),
            ("np.sqrt(self.width * regress.diagonal())", "self.width * regress.diagonal()"),
            ("np.where(known, found, np.inf)).reshape", "found).reshape"),
            ("(2 * claimed - np.where(there, sizes, 0) * turned)", "(claimed - np.where(there, sizes, 0) * turned)"),
            ("3 * self.dimension * self.width", "3 * self.width"),
            ("all_squares[-1]\n        return None", "squares\n        return None"),
            ("[1] + np.log(2)", "[1] + np.log(4)"),
            ("inverse = inverse - np.outer(turned, turned) / grown", "inverse = inverse - np.outer(turned, turned)"),
            ("patience: ClassVar[int] = 200", "patience: ClassVar[int] = 3_000"),
            ("*self.bounds(mdp, rank))", "*self.bounds(mdp, 9 * rank))"),
            ("if mdp.features is None:", "if False:"),
        ],
    ),
    Group(
        "methods/theory/loop_amdp_mixture.py",
        "test_loop_amdp_linear.py -k 'mixture or models or constant or input'",
        [
            ("return mean, orthonormal((backups - mean).T)", "return 0 * mean, orthonormal(backups.T)"),
            ("self.rewards + self.moves @ value", "self.moves @ value"),
            ("backups.max(0))", "backups.max())"),
            ("np.sqrt(np.arange(mdp.shape[1]))", "np.zeros(mdp.shape[1])"),
            ("if len(mdp.models) < 2:", "if False:"),
        ],
    ),
    Group(
        "methods/theory/nora.py",
        "test_nora.py",
        [
            ("grown = (self.age + episodes)", "grown = (self.age * 0 + episodes)"),
            ("critic.age.add_(len(batch))", "critic.age.add_(1)"),
            ("critic.age.zero_()", "pass"),
            ("if not self.reset:", "if self.reset:"),
            ("last // cells.shape[1] + 1", "last // cells.shape[1] + 2"),
            ("(episodes * scale**2)", "(episodes * scale**2 * h)"),
            ("critic.highest if self.bonus else 0.0", "critic.highest"),
            ('greedy(critic.values) if memory.get("greedy") else actor', "actor"),
        ],
    ),
    Group(
        "parts/finite.py",
        "test_nora.py test_loop_amdp.py",
        [
            ('memory["rows"] -= len(rows) - taken', "pass"),
            ("if counts[cell] >= limits[cell]:", "if counts[cell] > limits[cell]:"),
            ("torch.where(count[h] > 0, known.clamp(max=highest), unknown)", "known.clamp(max=highest)"),
            ("mdp.worth(policy[:episodes])", "mdp.worth(policy[:1])"),
            ('time=memory["time"] + steps)', 'time=memory["time"] + found["state"].shape[1] + 1)'),
        ],
    ),
    Group(
        "methods/theory/popler.py",
        "test_agnostic_pl.py -k 'popler or buys'",
        [
            ("agree[..., :begin] = True", "pass"),
            ("if node is None or layer > begin:", "if True:"),
            ("for place in reversed(range(len(of))):", "for place in range(0):"),
            ("(paid[every, end] - paid[:, begin])", "paid[every, end]"),
            ("* len(found.core) / core[every, end]", "/ core[every, end]"),
            ("(reach * chains.reached[:, :, place]).sum(1)", "chains.reached[:, 0, place]"),
            ("played[:, :layer] = found.policies", "played[:, layer:] = found.policies"),
        ],
    ),
    Group(
        "methods/theory/trajectory_tree.py",
        "test_agnostic_pl.py -k 'tree or buys'",
        [
            ("needed += int(asked.scatter_(1, cell, True).sum())", "needed += cell.numel()"),
            ("total += reward", "total = reward"),
        ],
    ),
    Group(
        "methods/theory/importance_sampling.py",
        "test_agnostic_pl.py -k 'unbiased'",
        [
            ("float(mdp.shape[2]) ** batch", "float(mdp.shape[2]) * batch"),
            (".all(-1)  # pi ~> tau", ".any(-1)"),
        ],
    ),
    Group(
        "methods/theory/cpi.py",
        "test_agnostic_pl.py -k 'advantages or bad_input'",
        [
            (".double() - policy[step, state, action]", ".double()"),
            ("return layers * actions * ", "return actions * "),
            ("if float(gains[best]) < self.eps:", "if False:"),
            ("if self.begins_with >= len(policies):", "if False:"),
        ],
    ),
    Group(
        "methods/theory/policy_emulator.py",
        "test_agnostic_pl.py -k emulator",
        [
            ('high = batch["test_value"] >= table.middle', 'high = batch["test_value"] < table.middle'),
            ("first[:, act] = 1", "first[:, 1 - act] = 1"),
            ("float(values.max() + values.min()) / 2", "float(values.max())"),
            ('q = batch["paid"].expand(len(policies), -1)', 'q = 0 * batch["paid"].expand(len(policies), -1)'),
            ("table.values.mean(1))\n            see", "table.values[:, 0])\n            see"),
        ],
    ),
    Group(
        "methods/theory/psdp.py",
        "test_access_drafts.py test_agnostic_pl.py -k 'ladder or psdp'",
        [
            ("value.argmax()]", "value.argmin()]"),
            ('self.policies == "class" and mdp', "mdp"),
        ],
    ),
    Group(
        "tasks/theory/policy_class.py",
        "test_agnostic_pl.py -k 'fit or class'",
        [
            ("int(whole.max()) >= actions", "False"),
            ("(whole == found).all()", "True"),
            ("if self.petals and len(self.petals) != len(policies):", "if False:"),
            ("if not (0 <= h < layers and 0 <= s < states):", "if False:"),
        ],
    ),
    Group(
        "methods/theory/bilevel_penalty.py",
        "test_bilevel_penalty.py",
        [
            ("(lower(x, y) - lower(x, z)) / sigma", "(lower(x, y) - lower(x, z)) * sigma"),
            ("- sigma * slope) / temperature", "+ sigma * slope) / temperature"),
            ("temperature = task.tau + 1 / rho", "temperature = task.tau + rho"),
            ("task.log_reference + start / rho) / temperature", "task.log_reference + start) / temperature"),
            ("self.sigma, self.tolerance, self.rho)", "self.sigma, self.tolerance)"),
            ("nearest(task, x, before, self.rho)", "nearest(task, x, before, None)"),
            ("before + math.log1p(-share), solved", "before + math.log(share), solved"),
            ('kept["log_nearest"] = near', "pass"),
            ("(self.rho is not None or self.relaxation < 1):\n            raise", "False:\n            raise"),
            ("reward.weights.copy_(x - self.step_size * found)", "reward.weights.copy_(x + self.step_size * found)"),
            ("if not isinstance(task, RewardBandit):", "if False:"),
        ],
    ),
    Group(
        "tasks/theory/reward_bandit.py",
        "test_bilevel_penalty.py",
        [
            ("return 2 * policy @ loss @ policy", "return policy @ loss @ policy"),
            ("self.tau * policy @ (log_policy - self.log_reference)", "self.tau * policy @ log_policy"),
        ],
    ),
    Group(
        "methods/theory/bilevel_penalty_sampled.py",
        "test_bilevel_penalty_sampled.py",
        [
            ("torch.where(pairs.prefers, margin, -margin)", "margin"),
            ("(loss - math.log(2))", "(loss - 2 * pairs.cost)"),
            ("+ task.ridge * x.square().sum()", ""),
            ("weight[pairs.first] * weight[pairs.second]", "weight[pairs.first]"),
            ("(1 - momentum) * (self", "momentum * (self"),
            ("gradient(self.before[kind])", "gradient(self.before[0])"),
            ("self.before[kind], self.estimate[kind] = self.point, found", "self.before[kind] = self.point"),
            ("luck[2] < torch.sigmoid(", "luck[1] < torch.sigmoid("),
            ("2 * self.pairs\n", "self.pairs\n"),
            ("others = pairs if self.shared else minibatch()", "others = pairs"),
            (".square().sum() / (2 * self.rho)", ".square().sum() / self.rho"),
            ("levels.point.lerp_(begun, 1 - self.relaxation)", "levels.point.lerp_(begun, self.relaxation)"),
            ("if not bool(levels.point.isfinite().all()):", "if False:"),
        ],
    ),
    Group(
        "methods/theory/umt_psr.py",
        "test_umt_psr.py",
        [
            ("joint[total >= total.max() - beta]", "joint[total >= total.max() + 0 * beta]"),
            (
                "sums += distances[column[first : first + 1024]][:, column]",
                "sums = distances[column[first : first + 1024]][:, column]",
            ),
            ("first * size + largest", "largest"),
            ("joint[total.argmax()]", "joint[total.argmin()]"),
            ("models * self.most_iterations * horizon / self.delta", "models * self.most_iterations / self.delta"),
            ("found[h, :h] = context.run_state.policy[:h]", "found[h, :] = context.run_state.policy"),
            ("rows // task.tasks % task.horizon", "rows % task.horizon"),
            ("problem = rows % task.tasks", "problem = rows % 1"),
            ("return self.episodes * task.tasks", "return task.tasks"),
            ("if self.steps is not None:", "if False:"),
            ("task.likelihoods[:, sequence].log().T", "task.likelihoods[:, sequence].T"),
            ("for one in found) / task.tasks", "for one in found)"),
            ("if distance <= self.eps:", "if distance <= 2 * self.eps:"),
            ("single = torch.unique(task.joint[:, 0])", "single = torch.unique(task.joint[:, 0])[:9]"),
            ("if not isinstance(task, SharedPOMDPs):", "if False:"),
        ],
    ),
    Group(
        "tasks/theory/shared_pomdps.py",
        "test_umt_psr.py",
        [
            ("torch.stack([p, 1 - q], 1)", "torch.stack([p, q], 1)"),
            ("torch.stack([1 - e1, e1], -1)", "torch.stack([e1, 1 - e1], -1)"),
            (".sum(-1).max(-1)", ".max(-1).values.max(-1)"),
            (".abs() / 2)[0]", ".abs())[0]"),
            ("step % 2", "0"),
            ("/ chances[h][:, :, None, None]", "/ 1"),
            ("chances[0] / self.tasks", "chances[0].mean(0) / self.tasks"),
            ("[[t] if self.known_transition else", "[[t] if False else"),
            ("if size > MOST_JOINT:", "if False:"),
        ],
    ),
    Group(
        "report/task_charts.py",
        "test_report.py -k decade",
        [
            (".max(initial=0) / 10", ".max(initial=0) / 1e9"),
            ("good = (across > 0) & (up > 0)", "good = across > 0"),
        ],
    ),
    Group(
        "runtime/ranks.py",
        "test_ranks.py -k 'share or kind or differ or told or refused or nothing'",
        [
            ("start = self.number * size + min(self.number, more)", "start = self.number * size"),
            ("items[start : start + size + (self.number < more)]", "items[start : start + size]"),
            ("if len({repr(told) for told in self.gathered(sums)}) > 1:", "if False:"),
            ("(1 + torch.arange(len(flat), dtype=torch.float64).remainder(97))", "1"),
            ("one[:2] == two[:2] and", ""),
            ("json.dumps(made)", "pass"),
            ("other.add_note(TOLD)", "pass"),
        ],
    ),
    Group(
        "runtime/torchrun.py",
        "test_ranks.py -k 'parts_nothing'",
        [
            ('return int(os.environ["WORLD_SIZE"]) if named else 1', 'return int(os.environ.get("WORLD_SIZE", 1))'),
        ],
    ),
    Group(
        "core/updating.py",
        "test_ranks.py -k 'one_order'",
        [("for name in names:  # in one order on every rank, which a set has not", "for name in set(names):")],
    ),
    Group(
        "core/parting.py",
        "test_ranks.py -k 'logged'",
        [
            ("context.metrics[GAP] = max(gaps)", "context.metrics[GAP] = gaps[-1]"),
            ('means.add(key, value, one["counts"][key])', "means.add(key, value, 1.0)"),
        ],
    ),
    Group(
        "rollout/served.py",
        "test_served.py -k 'not killed'",
        [
            ('if self.state()["version"] != version:', "if False:"),
            ("if status != STALE and", "if"),
            ('"skipped": share[0] * each', '"skipped": 0'),
            ("if not torch.equal(generator.get_state()", "if False and not torch.equal(generator.get_state()"),
            ('fill = self.policy.pad_id if name == "action" else 0', "fill = 0"),
        ],
    ),
    Group(
        "rollout/generation_server.py",
        "test_served.py -k 'not killed'",
        [
            ("if version != self._version:", "if False:"),
            ("if skipped:", "if False:"),
            ("if token and not hmac", "if False and not hmac"),
            ("if not 0 <= self._size() <= most:", "if False:"),
            ("            self.close_connection = True  # what was", "            pass  # what was"),
            (
                "{k: x.shape for k, x in mine.items()} != {k: x.shape for k, x in weights.items()}",
                "mine.keys() != weights.keys()",
            ),
        ],
    ),
    Group(
        "rollout/wire.py",
        "test_served.py -k 'not killed'",
        [
            (
                "found.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())",
                "found.update(str(float(x.sum())).encode())",
            ),
            ("for name in sorted(weights):", "for name in weights:"),
            ("model = copy.deepcopy(model).merge_and_unload()", "model = copy.deepcopy(model).unload()"),
        ],
    ),
    Group(
        "tasks/theory/solving.py",
        "test_finite_mdps.py -k 'reach or ladder'",
        [
            ("reach).max(1).values\n        found[last]", "reach).mean(1)\n        found[last]"),
            ("for h in range(last - 1, -1, -1):\n            reach", "for h in range(last):\n            reach"),
            ("initial).sum(-1).max())", "initial).sum(-1).min())"),
            ("met = most > 0", "met = most > 0.5"),
        ],
    ),
]
