"""CHGNet 0.3.0 (Deng et al. 2023), a potential for crystals, on six crystals that pymatgen builds.

What its predictions are compared with are those of the package's earlier release of the weights, 0.2.0: energies per
atom, or energies, forces and stresses.
"""

from __future__ import annotations

import contextlib
import copy
import io
from functools import partial
from typing import Any

import numpy as np
import torch
from chgnet.model import model as code
from pymatgen.core import Lattice, Structure
from torch import Tensor, nn

from .subject import Pair, Subject

DISPLACED = 0.08  # angstrom, the standard deviation by which every atom was moved
PROTOTYPES = (
    (4.21, ("Mg", "O"), "rock salt"),
    (5.64, ("Na", "Cl"), "rock salt"),
    (4.12, ("Cs", "Cl"), "caesium chloride"),
    (5.65, ("Ga", "As"), "zinc blende"),
    (3.91, ("Sr", "Ti", "O"), "perovskite"),
    (3.80, ("Li", "Mn", "O"), "perovskite"),
)
PLACES = {
    "rock salt": ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5)),
    "caesium chloride": ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5)),
    "zinc blende": ((0.0, 0.0, 0.0), (0.25, 0.25, 0.25)),
    "perovskite": ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)),
}
EXAMINED = (
    "atom_embedding.embedding",
    "atom_conv_layers.0.twoBody_atom.mlp_core.layers.0",
    "bond_conv_layers.1.twoBody_bond.mlp_gate.layers.3",
    "atom_conv_layers.3.twoBody_atom.mlp_core.layers.0",
    "mlp.layers.0",
)
CHECKED = (
    *EXAMINED,
    "bond_basis_expansion.rbf_expansion_ag",
    "angle_embedding",
    "angle_layers.0.twoBody_bond.bn1",
    "readout_norm",
    "mlp.layers.7",
)


class PlainLayerNorm(nn.LayerNorm):
    """LayerNorm by plain operations, for the truths.

    The Hessian of a loss on forces takes a third derivative of the energy, in which torch's own LayerNorm (2.13) is
    wrong: the products are then those of no symmetric matrix.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias."""
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


def structures() -> list[Structure]:
    """The crystals' primitive cells, every atom moved a little, which makes forces."""
    rng, made = np.random.default_rng(0), []
    for side, species, prototype in PROTOTYPES:
        face_centred = prototype in ("rock salt", "zinc blende")
        lattice = Lattice(side / 2 * (1 - np.eye(3))) if face_centred else Lattice.cubic(side)
        places = PLACES[prototype]
        atoms = [*species, *[species[-1]] * (len(places) - len(species))]
        crystal = Structure(lattice, atoms, places)
        moved = crystal.cart_coords + DISPLACED * rng.standard_normal((len(places), 3))
        made.append(Structure(lattice, atoms, np.round(moved, 6), coords_are_cartesian=True))
    return made


def crystals(task: str, dtype: torch.dtype) -> Subject:
    """``task``: "e" (energies) or "efs" (energies, forces, stresses)."""
    with contextlib.redirect_stdout(io.StringIO()):
        model, earlier = (code.CHGNet.load(model_name=n, use_device="cpu", verbose=False) for n in ("0.3.0", "0.2.0"))
    graphs = [model.graph_converter(crystal) for crystal in structures()]
    # Rounded far above float64's digits, so that every processor has the same.
    told = _in_dtype(earlier, torch.float64)([cast(graph, torch.float64) for graph in graphs], task=task)
    targets = {key: [part.detach().mul(1e5).round().div(1e5).float().to(dtype) for part in told[key]] for key in task}
    model = _in_dtype(model, dtype)
    return Subject(
        model=model,
        batches=[([cast(graph, dtype) for graph in graphs], targets)],
        total=partial(_total, task),
        criterion=None,
        blocks="module",
        examined=EXAMINED,
        checked=CHECKED,
        packages=("chgnet", "pymatgen"),
    )


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode, whole in this dtype."""
    if dtype == torch.float64:  # the package makes the composition's features in float32, whatever the model is in
        model.composition_model.fc.register_forward_pre_hook(lambda module, inputs: inputs[0].to(dtype))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.__class__ = PlainLayerNorm
    return model.to(dtype).eval()


def cast(graph: Any, dtype: torch.dtype) -> Any:
    """A copy of a crystal graph whose real tensors are leaves in ``dtype``."""
    made = copy.copy(graph)
    for name, value in vars(graph).items():
        if isinstance(value, Tensor):
            value = value.detach().clone()
            real = value.is_floating_point()
            setattr(made, name, value.to(dtype).requires_grad_(name in MOVED) if real else value)
    return made


MOVED = ("atom_frac_coord", "lattice")


def _total(task: str, model: nn.Module, batch: tuple[list[Any], dict[str, list[Tensor]]]) -> Pair:
    """Squared errors of each crystal: energy per atom (eV), forces (eV/A), 0.1 times stress (GPa)."""
    graphs, targets = batch
    found, loss = model(graphs, task=task), torch.zeros(())
    for key, factor in (("e", 1.0), ("f", 1.0), ("s", 0.1)):
        if key in task:
            pairs = zip(found[key], targets[key], strict=True)
            loss = loss + factor * sum((a - b).square().mean() for a, b in pairs)
    return loss, len(graphs)


energies, forces = partial(crystals, "e"), partial(crystals, "efs")
