from pdtrim_core.api import LayerRecovery, hookimpl

class Rescale(LayerRecovery):
    """Rescales what the block in front of a gap adds, each number of the hidden states by its own factor."""
    name = "rescale"

    def wants(self, stage, layer, gone):
        return stage == "decode" and layer.runs and bool(gone)

    def weights(self, layer):
        if not layer.adds_what_it_makes():
            return {}
        name = layer.layout.mlp[-1]
        pairs = [(t.made_ND, t.made_ND + t.wanted_ND - t.after_ND) for t in layer.tokens()]
        factor = (sum((m * w).sum(0) for m, w in pairs) + 1e-9) / (sum((m * m).sum(0) for m, _ in pairs) + 1e-9)
        out = layer.module.get_submodule(name).named_parameters()
        return {f"{name}.{part}": factor.diag() @ w.detach() for part, w in out}

@hookimpl
def pdtrim_recoveries():
    yield Rescale
