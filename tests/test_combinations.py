"""Every initialisation scheme with every family and norm: 50 steps on the digits, all finite, or refused."""

import pytest
import torch
from helpers import crossed, go, prepare

from optnet import RequestError
from optnet.app.config import Model, Train
from optnet.data import DataOptions
from optnet.networks.initialisation import SCHEMES, InitOptions
from optnet.networks.layers import FAMILIES, NORMS, PIXEL_NORMS
from optnet.training.monitoring.monitor import MonitorOptions

MODELS = {"plain": "gdnet_small", "dense": "agdnet_small", "dense_bc": "agdnet_small"}
NETWORKS = {layer: Model(MODELS.get(layer, "hbnet_small"), layer=layer) for layer in FAMILIES}
NETWORKS["two streams"] = Model("admmnet_small")
REFUSED = {("weight", "lsuv"), ("weight_mean", "lsuv")}


def refused(network, norm):
    return norm not in FAMILIES[NETWORKS[network].layer or "basic"].norms


@pytest.mark.slow
@pytest.mark.parametrize("network, norm", crossed(NETWORKS, [*NORMS, *PIXEL_NORMS], without=refused))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_fifty_steps(network, norm, scheme, tmp_path):
    model = Model(**{**vars(NETWORKS[network]), "norm": norm})
    config = Train(
        epochs=10, max_steps=50, batch_size=32, lr=0.01, device="cpu", progress=False, runs=str(tmp_path / "runs"),
        model=model, data=DataOptions(limit=400), init=InitOptions(scheme),
        monitor=MonitorOptions(every=0, conditioning=0, figures="none", graph=False),
    )  # fmt: skip
    if (norm, scheme) in REFUSED:
        with pytest.raises(RequestError, match="norm=weight") as error:
            prepare(config)
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
        return
    parts = prepare(config)
    go(parts)  # raises if the loss is not finite
    assert all(value.isfinite().all() for value in parts.model.state_dict().values())
    last = torch.load(next(tmp_path.rglob("last.pt")), weights_only=True)
    assert last["progress"]["updates"] == 50
