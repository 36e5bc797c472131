"""Images moved, turned, slanted and scaled: copies of the same thing seen a little differently."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import affine_grid, grid_sample

from cplmixvi import pp
from cplmixvi._constants import COUNT_LIKELIHOODS

from ._base import Augmenter

#: Rotations beyond this have no slant to take out: an image may lie on its side.
_LARGEST_SLANT = 45.0
#: Rotations by which an image may stand in any way.
_ANY_ROTATION = 180.0
#: Largest translation, as a share of the image's side, that encoders learn to see through.
_FAR = 0.15
#: Root mean square distance of a normal image's mass from its centre, per axis, as a share of the image's side.
_NORMAL_RADIUS = 0.15
#: How much an image is shrunk or enlarged at most to be of normal size.
_SCALE_RANGE = (0.2, 5.0)


class Affine(Augmenter):
    r"""Draw a random affine map for each image: rotation, shear, scale and translation.

    At pixel :math:`u` (relative to the centre of the image), a copy has the value of the image at
    :math:`R(\theta)\begin{pmatrix}1&\tan\phi\\0&1\end{pmatrix}u / \sigma + t`, bilinearly interpolated and zero outside
    the image. All four are independent and uniform within the given bounds (the paper's Table S1 has rotations only).
    Values are grey levels on a dark background, with pixels in row-major order.

    The start of training sees :meth:`normal_form`, which removes the same four by means of the image's moments. The
    arms see it too, in addition to the image itself, if images are rotated by up to 180 degrees or moved by more than
    15 % of their side.

    Parameters
    ----------
    rotation
        Largest angle, degrees, in ``[0, 180]``.
    shear
        Largest angle :math:`\phi` of the slant, degrees, in ``[0, 60]``.
    scale
        Largest relative change of size, in ``[0, 1)``.
    translation
        Largest shift along each axis, as a share of the image's side, in ``[0, 1)``.
    shape
        Rows and columns; a square if `None`.

    Raises
    ------
    ValueError
        If a bound is out of range.
    """

    on_images = True

    def __init__(
        self,
        rotation: float = 20.0,
        shear: float = 15.0,
        scale: float = 0.15,
        translation: float = 0.07,
        shape: Sequence[int] | None = None,
    ):
        super().__init__()
        bounds = {
            "rotation": (rotation, 180),
            "shear": (shear, 60),
            "scale": (scale, 1),
            "translation": (translation, 1),
        }
        for name, (value, most) in bounds.items():
            below = value < most if most == 1 else value <= most
            if not (value >= 0 and below):
                raise ValueError(
                    f"{name}={value!r} is out of range: give {'degrees' if most > 1 else 'a share'} from 0 to "
                    f"{'' if most > 1 else 'less than '}{most}."
                )
        self.rotation, self.shear = float(rotation), float(shear)
        self.scale, self.translation = float(scale), float(translation)
        self.moves_far = rotation >= _ANY_ROTATION or translation > _FAR
        self.shape = None if shape is None else [int(side) for side in shape]

    def build(self, n_genes: int, likelihood: str, target_library: float) -> None:
        """Check the likelihood and the shape of the images; see :meth:`Augmenter.build`.

        Raises
        ------
        ValueError
            If the number of pixels does not match the shape or is not that of a square, or if the values are counts.
        """
        if likelihood in COUNT_LIKELIHOODS:
            raise ValueError(
                f"augment='affine' interpolates between pixels, and likelihood={likelihood!r} needs counts; use "
                "likelihood='bernoulli' on values in [0, 1] or 'normal' on others."
            )
        self._shape_of(n_genes)

    def _shape_of(self, n_pixels: int) -> tuple[int, int]:
        """Rows and columns of images with so many pixels."""
        return pp.image_sides(n_pixels, self.shape, given_as="augment=cplmixvi.augment.Affine(shape={})")

    def forward(self, x: torch.Tensor, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Draw a transformed copy of each image, ``(n_images, n_pixels)``."""

        def uniform(bound: float) -> torch.Tensor:
            return bound * (2 * torch.rand(len(x), device=x.device, dtype=x.dtype) - 1)

        angle, slant = uniform(math.radians(self.rotation)), uniform(math.radians(self.shear)).tan()
        size, shift = 1 + uniform(self.scale), torch.stack([uniform(2 * self.translation) for _ in range(2)], dim=1)
        rows, columns = self._shape_of(x.shape[1])
        cos, sin = angle.cos() / size, angle.sin() / size
        matrix = torch.stack(
            [torch.stack([cos, slant * cos - sin], dim=1), torch.stack([sin, slant * sin + cos], dim=1)], dim=1
        )
        # Coordinates run from -1 to 1 along both axes, however long these are.
        half = x.new_tensor([columns / 2, rows / 2])
        return self._sampled(x, matrix * half / half[:, None], shift)

    def _sampled(self, x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Images read at ``matrix @ u + shift`` for every pixel ``u``, in coordinates from -1 to 1."""
        images = x.view(len(x), 1, *self._shape_of(x.shape[1]))
        grid = affine_grid(torch.cat([matrix, shift[:, :, None]], dim=2), list(images.shape), align_corners=False)
        # Interpolation may leave the range of the values by a rounding error, which "bernoulli" does not allow.
        moved = grid_sample(images, grid, align_corners=False).view(len(x), -1)
        return torch.minimum(torch.maximum(moved, x.amin().clamp_max(0)), x.amax())

    def normal_form(self, x: torch.Tensor) -> torch.Tensor:
        r"""Images without the variation that copies introduce, as far as their moments reveal it.

        The centre of mass is moved to the middle, the slant :math:`\mu_{11}/\mu_{02}` is removed (as in the usual
        deskewing of digits), and the root mean square distance from the centre, per axis, is set to 15 % of the side
        (enlarging or shrinking by at most a factor of five). What copies do not change is left alone: images are not
        moved if there is no translation, not scaled if there is no scale, and not deslanted if there is neither shear
        nor rotation, or if rotations exceed 45 degrees. If rotations reach 180 degrees, an image is replaced by its
        mean over all rotations: every pixel takes the mean of the pixels at the same distance from the middle.

        Parameters
        ----------
        x
            Images, ``(n_images, n_pixels)``.

        Returns
        -------
        torch.Tensor
            Same shape. Images that are zero everywhere are returned unchanged.
        """
        rows, columns = self._shape_of(x.shape[1])
        images = x.clamp_min(0).view(-1, rows, columns)
        across = torch.arange(columns, device=x.device, dtype=x.dtype) - (columns - 1) / 2
        down = torch.arange(rows, device=x.device, dtype=x.dtype) - (rows - 1) / 2
        mass = images.sum((1, 2)).clamp_min(1e-6)
        centre = torch.stack([images.sum(1) @ across, images.sum(2) @ down], dim=1) / mass[:, None]
        dx, dy = across - centre[:, :1], down - centre[:, 1:]
        xy = torch.einsum("nij,ni,nj->n", images, dy, dx) / mass
        yy = torch.einsum("nij,ni->n", images, dy.square()) / mass
        xx = torch.einsum("nij,nj->n", images, dx.square()) / mass
        slants = (self.shear > 0 or self.rotation > 0) and self.rotation <= _LARGEST_SLANT
        slant = xy / yy.clamp_min(1e-3) if slants else torch.zeros_like(xy)
        zoom = torch.ones_like(xy)
        if self.scale > 0:
            radius = ((xx + yy - slant * xy) / 2).clamp_min(0).sqrt()
            zoom = (radius / (_NORMAL_RADIUS * math.sqrt(rows * columns))).clamp(*_SCALE_RANGE)
        matrix = torch.zeros(len(x), 2, 2, device=x.device, dtype=x.dtype)
        matrix[:, 0, 0] = matrix[:, 1, 1] = zoom
        matrix[:, 0, 1] = slant * zoom * (rows / columns)
        shift = centre / x.new_tensor([columns / 2, rows / 2]) if self.translation > 0 else torch.zeros_like(centre)
        normal = torch.where((images.sum((1, 2)) > 0)[:, None], self._sampled(x, matrix, shift), x)
        return normal if self.rotation < _ANY_ROTATION else _turned_about(normal, across, down)

    def neutral(self, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The normal form of each image; see :meth:`Augmenter.neutral`."""
        return self.normal_form(x)[None]


def _turned_about(x: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Mean over all rotations of images ``(n_images, n_pixels)``, with the pixels' distances from the middle."""
    ring = (across.square() + down[:, None].square()).sqrt().round().long().view(-1)
    size = torch.bincount(ring).to(x.dtype)
    total = x.new_zeros(len(x), len(size)).index_add_(1, ring, x)
    return (total / size.clamp_min(1))[:, ring]
