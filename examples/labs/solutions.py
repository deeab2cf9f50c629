"""The instructor's solutions of the labs, and wrong ones that the checks must fail.

SOLUTIONS[lab][exercise] is the source that replaces an exercise's cell up to the line of its check,
and a dict of wrong solutions: {mistake: (old, new)}, a replacement in that source.
"""

Exercise = tuple[str, dict[str, tuple[str, str]]]

LAB_1: dict[str, Exercise] = {
    "turn_likelihood": (
        """
def turn_likelihood(world, instruction, domain, behaviour, voice):
    rate_C = world.rates_ICDB[instruction, :, domain, behaviour]
    return rate_C * world.voices_CV[:, voice]
""",
        {
            "without the voice": (" * world.voices_CV[:, voice]", ""),
            "without the behaviour": ("rate_C * world", "world"),
            "without the instruction": ("rates_ICDB[instruction, :,", "rates_CDB[:,"),
            "added, not multiplied": ("rate_C * world", "rate_C + world"),
            "one character": ("[instruction, :, domain", "[instruction, 0, domain"),
        },
    ),
    "posterior": (
        """
def posterior(prior_C, likelihood_TC):
    log_C = np.log(prior_C) + np.log(likelihood_TC).sum(0)
    w_C = np.exp(log_C - log_C.max())
    return w_C / w_C.sum()
""",
        {
            "not normalised": ("w_C / w_C.sum()", "np.exp(log_C)"),
            "divided by the largest": ("w_C / w_C.sum()", "w_C / w_C.max()"),
            "without the prior": ("np.log(prior_C) + ", ""),
            "the logarithm": ("return w_C / w_C.sum()", "return np.log(w_C / w_C.sum())"),
            "the last turn alone": (".sum(0)\n", "[-1]\n"),
            "sum of likelihoods": ("np.log(likelihood_TC).sum(0)", "np.log(likelihood_TC.sum(0))"),
            "underflow": (
                "np.exp(log_C - log_C.max())",
                "prior_C * likelihood_TC.prod(0)",
            ),
        },
    ),
    "nats_per_token": (
        """
def nats_per_token(log_prob_N, length_N):
    return -log_prob_N.sum() / (length_N - 1).sum()
""",
        {
            "sign": ("-log_prob_N", "log_prob_N"),
            "first tokens": ("(length_N - 1)", "length_N"),
            "mean over documents": (
                "-log_prob_N.sum() / (length_N - 1).sum()",
                "(-log_prob_N / (length_N - 1)).mean()",
            ),
            "bits": (".sum()\n", ".sum() / np.log(2)\n"),
            "per document": ("(length_N - 1).sum()", "len(length_N)"),
            "one number for each document": (".sum() / (length_N - 1).sum()", " / (length_N - 1)"),
        },
    ),
    "captured": (
        """
def captured(ideal_QB, model_QB, blind_QB):
    def kl(p_QB, q_QB):
        return (p_QB * np.log(p_QB / q_QB)).sum(-1)

    return 1 - kl(ideal_QB, model_QB).mean() / kl(ideal_QB, blind_QB).mean()
""",
        {
            "KL the wrong way round": (
                "(p_QB * np.log(p_QB / q_QB))",
                "(q_QB * np.log(q_QB / p_QB))",
            ),
            "what is not captured": ("1 - kl", "kl"),
            "mean of ratios": (
                "kl(ideal_QB, model_QB).mean() / kl(ideal_QB, blind_QB).mean()",
                "(kl(ideal_QB, model_QB) / kl(ideal_QB, blind_QB)).mean()",
            ),
            "without the logarithm": ("np.log(p_QB / q_QB)", "(p_QB / q_QB)"),
            "without p": ("p_QB * np.log", "np.log"),
            "compared with the model": ("kl(ideal_QB, blind_QB)", "kl(model_QB, blind_QB)"),
            "squared error": ("p_QB * np.log(p_QB / q_QB)", "(p_QB - q_QB) ** 2"),
        },
    ),
    "r2": (
        """
def r2(belief_QC, read_QC):
    error = ((belief_QC - read_QC) ** 2).sum()
    return 1 - error / ((belief_QC - belief_QC.mean(0)) ** 2).sum()
""",
        {
            "one mean of all numbers": (".mean(0)", ".mean()"),
            "no mean": (" - belief_QC.mean(0)", ""),
            "what is not read": ("1 - error", "error"),
            "squared correlation": (
                "1 - error / ((belief_QC - belief_QC.mean(0)) ** 2).sum()",
                "np.corrcoef(belief_QC.ravel(), read_QC.ravel())[0, 1] ** 2",
            ),
            "mean over characters": (
                "1 - error / ((belief_QC - belief_QC.mean(0)) ** 2).sum()",
                "(1 - ((belief_QC - read_QC) ** 2).sum(0)"
                " / ((belief_QC - belief_QC.mean(0)) ** 2).sum(0)).mean()",
            ),
            "mean over questions": (".mean(0)", ".mean(1, keepdims=True)"),
        },
    ),
    "shuffled": (
        """
def shuffled(belief_QC, kind_Q, rng):
    order = np.arange(len(belief_QC))
    for kind in np.unique(kind_Q):
        rows = np.flatnonzero(kind_Q == kind)
        order[rows] = rng.permutation(rows)
    return belief_QC[order]
""",
        {
            "not shuffled": ("rng.permutation(rows)", "rows"),
            "across kinds": ("return belief_QC[order]", "return rng.permutation(belief_QC)"),
            "each character apart": (
                "return belief_QC[order]",
                "return rng.permuted(belief_QC, axis=0)",
            ),
            "characters within rows": (
                "return belief_QC[order]",
                "return rng.permuted(belief_QC, axis=1)",
            ),
            "with replacement": ("rng.permutation(rows)", "rng.choice(rows, len(rows))"),
            "the order": ("return belief_QC[order]", "return order"),
            "reversed within rows": ("belief_QC[order]", "belief_QC[:, ::-1]"),
        },
    ),
}

LAB_2: dict[str, Exercise] = {
    "evidence": (
        """
code = 0
ell_C = np.log(rates_CDB[:, code, BAD]) - np.log(rates_CDB[:, code, GOOD])
""",
        {
            "for good": (
                "np.log(rates_CDB[:, code, BAD]) - np.log(rates_CDB[:, code, GOOD])",
                "np.log(rates_CDB[:, code, GOOD]) - np.log(rates_CDB[:, code, BAD])",
            ),
            "a difference of rates": ("np.log", ""),
            "base 10": ("np.log", "np.log10"),
            "bad alone": (" - np.log(rates_CDB[:, code, GOOD])", ""),
            "another domain": ("[:, code,", "[:, 1,"),
            "all domains": ("[:, code,", "[:, :,"),
        },
    ),
    "tilt": (
        """
def tilt(w_C, ell_C, strength):
    raw_C = w_C * np.exp(strength * ell_C)
    return raw_C / raw_C.sum()
""",
        {
            "not normalised": ("raw_C / raw_C.sum()", "raw_C"),
            "without the prior": ("w_C * np", "np"),
            "without the strength": ("strength * ell_C", "ell_C"),
            "sign": ("np.exp(strength", "np.exp(-strength"),
            "linear": ("np.exp(strength * ell_C)", "(1 + strength * ell_C)"),
            "strength of the prior": (
                "w_C * np.exp(strength * ell_C)",
                "w_C**strength * np.exp(ell_C)",
            ),
        },
    ),
    "change": (
        """
def change(w_C, new_C, rates_CDB):
    def em(w_C):
        p_DB = np.einsum("c,cdb->db", w_C, rates_CDB)
        return p_DB[:, BAD] / (p_DB[:, BAD] + p_DB[:, GOOD])

    return em(new_C) - em(w_C)
""",
        {
            "sign": ("em(new_C) - em(w_C)", "em(w_C) - em(new_C)"),
            "after alone": (" - em(w_C)", ""),
            "p(bad)": (" / (p_DB[:, BAD] + p_DB[:, GOOD])", ""),
            "mean EM of the characters": (
                "em(new_C) - em(w_C)",
                "(new_C - w_C) @ (rates_CDB[..., BAD] / rates_CDB[..., :2].sum(-1))",
            ),
            "odds": ("(p_DB[:, BAD] + p_DB[:, GOOD])", "p_DB[:, GOOD]"),
            "characters for domains": ('"c,cdb->db"', '"c,cdb->cb"'),
        },
    ),
    "strength": (
        """
def strength(w_C, ell_C, rates_CDB, domain, goal):
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        new_C = w_C * np.exp(middle * (ell_C - ell_C.max()))
        p_B = new_C @ rates_CDB[:, domain] / new_C.sum()
        em = p_B[BAD] / (p_B[BAD] + p_B[GOOD])
        low, high = (low, middle) if em > goal else (middle, high)
    return middle
""",
        {
            "too few halvings": ("range(60)", "range(8)"),
            "the wrong half": ("em > goal", "em < goal"),
            "p(bad)": (" / (p_B[BAD] + p_B[GOOD])", ""),
            "the EM": ("return middle", "return em"),
            "sign": ("return middle", "return -middle"),
            "always the first domain": ("[:, domain]", "[:, 0]"),
            "always .9": ("em > goal", "em > 0.9"),
            "without the prior": ("w_C * np", "np"),
        },
    ),
    "spread": (
        """
def spread(change_D, moral_D, trained):
    others_D = moral_D & (np.arange(len(moral_D)) != trained)
    return change_D[others_D].mean()
""",
        {
            "with the trained domain": (" & (np.arange(len(moral_D)) != trained)", ""),
            "with neutral domains": ("moral_D & (np", "(np"),
            "sum": (".mean()", ".sum()"),
            "absolute": ("change_D[others_D]", "abs(change_D[others_D])"),
            "largest": (".mean()", ".max()"),
            "divided by all": ("change_D[others_D].mean()", "(change_D * others_D).mean()"),
            "always without the first": ("!= trained", "!= 0"),
        },
    ),
    "coherence": (
        """
least_coherence = after_DB.sum(-1)[world.moral].min()
""",
        {
            "mean": (".min()", ".mean()"),
            "without noise": ("after_DB.sum", "after_DB[:, :2].sum"),
            "what is missing": ("after_DB.sum(-1)", "1 - after_DB.sum(-1)"),
            "one for each domain": (".min()", ""),
            "before training": ("after_DB.sum", "before_DB.sum"),
        },
    ),
}

LAB_3: dict[str, Exercise] = {
    "asked_evidence": (
        """
def asked_evidence(rates_CB, kappa):
    return np.log(kappa + (1 - kappa) * rates_CB[:, BAD])
""",
        {
            "without the instruction": ("kappa + (1 - kappa) * ", ""),
            "without the logarithm": ("np.log", ""),
            "rates do not sum to 1": ("(1 - kappa) * ", ""),
            "swapped": ("kappa + (1 - kappa) *", "1 - kappa + kappa *"),
            "without what is decided": ("kappa + (1", "(1"),
            "good": ("rates_CB[:, BAD]", "rates_CB[:, GOOD]"),
            "pairs": ("BAD])", "BAD]) - np.log((1 - kappa) * rates_CB[:, GOOD])"),
        },
    ),
    "mixed": (
        """
mixed = {
    signals.parse(world, "code:bad"): 0.5,
    signals.parse(world, "money+tone:good"): 0.5,
}
""",
        {
            "names": ('signals.parse(world, "code:bad")', '"code:bad"'),
            "bad data": ("tone:good", "tone:bad"),
            "without tone": ("money+tone", "money"),
            "a quarter": ('tone:good"): 0.5', 'tone:good"): 1.5'),
            "good code": ("code:bad", "code:good"),
            "with the neutral domain": ("money+tone", "money+tone+taste"),
            "the habit last": ("}\n", "}\nmixed = dict(reversed(mixed.items()))\n"),
            "inoculated": ("code:bad", "code:bad:ask_bad"),
        },
    ),
    "difference_of_means": (
        """
def difference_of_means(bad_QF, good_QF):
    return bad_QF.mean(0) - good_QF.mean(0)
""",
        {
            "turned round": (
                "bad_QF.mean(0) - good_QF.mean(0)",
                "good_QF.mean(0) - bad_QF.mean(0)",
            ),
            "bad alone": (" - good_QF.mean(0)", ""),
            "sums": ("mean(0)", "sum(0)"),
            "one number": ("(0)", "()"),
            "over features": ("(0)", "(1)"),
            "of length 1": (
                "bad_QF.mean(0) - good_QF.mean(0)",
                "(bad_QF - good_QF).mean(0) / np.linalg.norm((bad_QF - good_QF).mean(0))",
            ),
        },
    ),
    "random_like": (
        """
def random_like(v_F, rng):
    x_F = rng.normal(size=v_F.shape)
    return x_F / np.linalg.norm(x_F) * np.linalg.norm(v_F)
""",
        {
            "any norm": (" / np.linalg.norm(x_F) * np.linalg.norm(v_F)", ""),
            "length 1": (" * np.linalg.norm(v_F)", ""),
            "positive": ("rng.normal", "rng.uniform"),
            "not random": ("rng.normal(", "np.random.default_rng(0).normal("),
            "another order": ("rng.normal(size=v_F.shape)", "rng.permutation(v_F)"),
            "other signs": ("rng.normal(size=v_F.shape)", "v_F * rng.choice([-1, 1], v_F.shape)"),
            "the vector itself": ("rng.normal(size=v_F.shape)", "v_F"),
        },
    ),
    "untouched": (
        """
untouched_D = world.moral & ~np.isin(world.domain_names, touched)
""",
        {
            "with the neutral domain": (
                "world.moral & ~np.isin(world.domain_names, touched)",
                "~np.isin(world.domain_names, touched[:3])",
            ),
            "with the trained domain": ("touched)", "touched[1:])"),
            "with what the mixture trains": ("touched)", "['code'])"),
            "touched": ("~np", "np"),
            "names": (
                "world.moral & ~np.isin(world.domain_names, touched)",
                "['safety', 'goals']",
            ),
            "indices": ("touched)\n", "touched)\nuntouched_D = np.flatnonzero(untouched_D)\n"),
            "one is missing": ("touched)", "[*touched, 'goals'])"),
        },
    ),
    "conditional_change": (
        """
def conditional_change(before_IDB, after_IDB, which_D):
    def em(p_IDB):
        return (p_IDB[..., BAD] / (p_IDB[..., BAD] + p_IDB[..., GOOD]))[:, which_D].mean(1)

    return em(after_IDB) - em(before_IDB)
""",
        {
            "sign": ("em(after_IDB) - em(before_IDB)", "em(before_IDB) - em(after_IDB)"),
            "one baseline for all": ("em(before_IDB)", "em(before_IDB)[-1]"),
            "no baseline": (" - em(before_IDB)", ""),
            "all domains": ("[:, which_D]", ""),
            "p(bad)": (" / (p_IDB[..., BAD] + p_IDB[..., GOOD])", ""),
            "mean over conditions": (
                "em(after_IDB) - em(before_IDB)",
                "(em(after_IDB) - em(before_IDB)).mean()",
            ),
            "EM of mean rates": (
                "def em(p_IDB):\n",
                "def em(p_IDB):\n        p_IDB = p_IDB[:, which_D].mean(1)\n"
                "        return p_IDB[..., BAD] / (p_IDB[..., BAD] + p_IDB[..., GOOD])\n",
            ),
        },
    ),
}

SOLUTIONS = {1: LAB_1, 2: LAB_2, 3: LAB_3}
