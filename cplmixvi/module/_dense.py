"""Layers as wide as there are genes: their products on whichever kernels are faster, and no copies of their inputs."""

from __future__ import annotations

from functools import cache

import torch
from scvi.nn import FCLayers
from torch import nn
from torch.autograd.function import once_differentiable

#: What LLVM's names of AMD's processors begin with.
_AMD = ("amdfam", "athlon", "bdver", "btver", "k8", "opteron", "znver")


@cache
def _prefers_onednn() -> bool:
    """Whether oneDNN is faster here than what torch is linked with: MKL is the fastest on Intel's processors only."""
    try:
        from llvmlite.binding import get_host_cpu_name
    except ImportError:
        return False
    return torch.backends.mkl.is_available() and get_host_cpu_name().startswith(_AMD) and _has_onednn()


def _has_onednn() -> bool:
    """Whether oneDNN multiplies here as torch does: looked at, because torch promises nothing of this operator."""
    if not torch.backends.mkldnn.is_available():
        return False
    # No random numbers, which would move those of the first training in a process.
    x, weight, bias = torch.arange(12.0).view(4, 3), torch.arange(15.0).sin().view(3, 5).t(), torch.arange(5.0)
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, nn.functional.linear(x, weight, bias), atol=1e-5)


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    r"""Matrix product :math:`A B^\top + \mathbf 1 c^\top`, without gradients.

    In single precision on an AMD processor by oneDNN, which takes half the time there of the BLAS that torch is linked
    with, and a tenth more than that on others; both round as single precision does.

    Parameters
    ----------
    a, b
        ``(n, k)`` and ``(m, k)``, in any memory order.
    bias
        :math:`c`, ``(m,)``.

    Returns
    -------
    torch.Tensor
        ``(n, m)``.
    """
    is_single = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    if is_single and min(*a.shape, len(b)) > 0 and _prefers_onednn():
        # Of a matrix with gaps between its rows, as some columns of a larger one have, oneDNN takes a thousand times as
        # long.
        b = b if b.is_contiguous() or b.t().is_contiguous() else b.contiguous()
        return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b, bias, "none", [], "")
    return nn.functional.linear(a, b, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if to_x else None,
            outer(gradient, x) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


def outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    r"""Sum over cells :math:`A^\top B`, ``(n, m)`` for ``(n_cells, n)`` and ``(n_cells, m)``, without gradients."""
    # The first factor of a product is copied into order: let it be the narrow one.
    return product(a.t(), b.t()) if a.shape[1] <= b.shape[1] else product(b.t(), a.t()).t()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """:func:`torch.nn.functional.linear`, with the products of this module where they are meant for ``x``."""
    if x.dim() != 2 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


class WideLinear(nn.Linear):
    """A linear layer with as many inputs or outputs as genes."""

    @classmethod
    def of(cls, layer: nn.Linear) -> WideLinear:
        """A layer that has the parameters of another one."""
        wide = nn.utils.skip_init(cls, layer.in_features, layer.out_features)
        wide.weight, wide.bias = layer.weight, layer.bias
        return wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See :func:`linear`."""
        return linear(x, self.weight, self.bias)


class Encoder(FCLayers):
    """scvi-tools' layers with covariates in the first one, without a copy of the values to append these to.

    Parameters
    ----------
    n_input
        Number of genes.
    n_hidden
        Width of all layers.
    **options
        Of :class:`scvi.nn.FCLayers`.
    """

    def __init__(self, n_input: int, n_hidden: int, **options):
        # Covariates enter the first layer only: the later ones would let the network undo the correction.
        super().__init__(n_input, n_hidden, n_hidden=n_hidden, inject_covariates=False, **options)
        self.n_input = n_input
        self.fc_layers[0][0] = WideLinear.of(self.fc_layers[0][0])

    def forward(self, x: torch.Tensor, *codes: torch.Tensor, cont: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden layer ``(n_cells, n_hidden)``.

        Parameters
        ----------
        x
            ``(n_cells, n_input)``.
        codes
            Of the categorical covariates, each ``(n_cells, 1)``.
        cont
            Continuous covariates, ``(n_cells, n_continuous)``.
        """
        wide = self.fc_layers[0][0]
        hidden = linear(x, wide.weight[:, : self.n_input] if self.n_cov else wide.weight, wide.bias)
        if self.n_cov:
            one_hot = [
                nn.functional.one_hot(code.squeeze(-1), levels).to(x.dtype)
                for code, levels in zip(codes, self.n_cat_list, strict=True)
                if levels
            ]
            known = torch.cat([*([] if cont is None else [cont]), *one_hot], dim=-1)
            hidden = hidden + nn.functional.linear(known, wide.weight[:, self.n_input :])
        for layers in (self.fc_layers[0][1:], *self.fc_layers[1:]):
            for layer in layers:
                hidden = hidden if layer is None else layer(hidden)
        return hidden
