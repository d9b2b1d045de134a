"""The smallest eigenvalue of symmetric 3x3 matrices, and its eigenvector, in closed form.

A batched solver of a GPU's library is made for few large matrices: the host waits for its report, and it is known to
fail on more than some ten thousand. Eigenvalues are the roots of the characteristic polynomial by cosines (Smith,
Comm. ACM 4, 1961). The one that lies apart from the other two gives its eigenvector as a cross product of rows, which
is exact to rounding; the other two come from a rotation of the plane across it, however close to each other they are.
"""

import math

import torch


def smallest_eigenpair(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest eigenvalue and its eigenvector, without gradient.

    Args:
        matrices: [N, 3, 3], symmetric, of any floating dtype; computed in float64 where the device has it.

    Returns:
        [N] and [N, 3] of unit length, in that precision. The sign of a vector, and of an eigenvalue that occurs more
        than once its direction among the possible ones, are arbitrary.
    """
    with torch.no_grad():
        # Apple's GPUs have no float64.
        matrices = matrices.to(torch.float32 if matrices.device.type == "mps" else torch.float64)
        tiny = torch.finfo(matrices.dtype).tiny
        scale = matrices.abs().amax((1, 2)).clamp(min=tiny)
        scaled = matrices / scale[:, None, None]
        middle = scaled.diagonal(dim1=1, dim2=2).mean(1)
        centred = scaled - middle[:, None, None] * torch.eye(3, dtype=scaled.dtype, device=scaled.device)
        spread = (centred.square().sum((1, 2)) / 6).sqrt()
        # cos(3 angle); between -1 and 1 but for rounding.
        ratio = (_determinant(centred) / (2 * spread**3).clamp(min=tiny)).clamp(-1, 1)
        angle = torch.acos(ratio) / 3
        # The largest lies apart from the other two where the cosine is positive, else the smallest does.
        largest_apart = ratio >= 0
        apart = 2 * spread * torch.where(largest_apart, angle.cos(), (angle + 2 * math.pi / 3).cos())
        axis = _null_vector(centred - apart[:, None, None] * torch.eye(3, dtype=scaled.dtype, device=scaled.device))
        first, second = _plane_across(axis)
        # The matrix within that plane, and the rotation that makes it diagonal.
        a, b, d = (_form(centred, x, y) for x, y in ((first, first), (first, second), (second, second)))
        turn = torch.atan2(2 * b, a - d) / 2
        lower = second * turn.cos()[:, None] - first * turn.sin()[:, None]
        vector = torch.where(largest_apart[:, None], lower, axis)
        return scale * (middle + _form(centred, vector, vector)), vector


def _form(matrices: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x^T M y of each: [N]."""
    return ((matrices * y[:, None]).sum(2) * x).sum(1)


def _determinant(matrices: torch.Tensor) -> torch.Tensor:
    first, second, third = matrices.unbind(1)
    return (first * torch.linalg.cross(second, third)).sum(1)


def _null_vector(matrices: torch.Tensor) -> torch.Tensor:
    """Unit vector [N, 3] that matrices of rank 2 take to 0; of a matrix of rank 0 any."""
    rows = matrices.unbind(1)
    crosses = torch.stack([torch.linalg.cross(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))], dim=1)
    lengths = crosses.square().sum(2).sqrt()
    best = lengths.argmax(1)[:, None]
    length = lengths.gather(1, best)
    vector = crosses.gather(1, best[:, :, None].expand(-1, 1, 3)).squeeze(1)
    upright = torch.nn.functional.pad(vector.new_ones(len(vector), 1), (2, 0))
    return torch.where(length > 0, vector / length.clamp(min=torch.finfo(length.dtype).tiny), upright)


def _plane_across(axis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two unit vectors [N, 3] across unit vectors [N, 3] and each other."""
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    # Across the smaller of x and y, so that its length is no difference of equal numbers.
    first = torch.where(
        (x.abs() > y.abs())[:, None], torch.stack([-z, zero, x], dim=1), torch.stack([zero, z, -y], dim=1)
    )
    first = first / first.square().sum(1, keepdim=True).sqrt()
    return first, torch.linalg.cross(axis, first)
