"""Convolutions of 3 x 3 and pooling of 2 x 2 that stay fast on CPUs, inside `scan` too.

`convolve_3x3` leaves accelerators their own convolution. On CPUs it has two forms:

- Nine shifted images and one matrix product. It can be differentiated in every way, and
  `jaxcomp.curvature` finds the product in it.
- XLA's convolution, all pixels of a small tile at once: with few channels it spends its time on
  gathering windows, and a window of 4 x 4 serves 2 x 2 pixels, at the price of multiplying with
  zeros. It takes a third of the time of the product, for scores and for training. XLA's own
  derivatives of it do not: inside a loop it convolves fast in one order of axes only, and not
  images with zeros between their pixels. So it has its own, and those only in reverse and once.
  Under `vmap` over kernels it is slow (a grouped convolution).

Axes: `N` images, `H` rows, `W` columns, `C` channels in, `O` channels out.
"""

import math
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding: TypeAlias = Literal["SAME", "VALID"]

_TILE_OUTPUTS = 32  # a product with fewer columns is slow
_FEW_CHANNELS = 4  # of which gathering takes longest


def convolve_3x3(
    inputs: Float[Array, "N H W C"],
    kernel: Float[Array, "3 3 C O"],
    *,
    padding: Padding = "SAME",
    in_tiles: bool = False,
) -> Float[Array, "N rows columns O"]:
    """Convolve images with 3 x 3 kernels, stride 1 (cross-correlation, as in every such library).

    On CPUs one of the two forms above, elsewhere `lax.conv_general_dilated`;
    `lax.platform_dependent` decides when the program is compiled for its device. All agree to
    rounding, in values and in derivatives.

    Args:
        inputs: images, channels last.
        kernel: of the same dtype.
        padding: `"SAME"` keeps `H` and `W` (zeros outside the image), `"VALID"` makes each two
            smaller and needs at least 3. Static.
        in_tiles: take the faster form on CPUs, for gradients in reverse only. Static.

    Returns:
        Images of `O` channels, in the dtype of the inputs.

    Raises:
        ValueError: while tracing, for other shapes or another padding.
    """
    if inputs.ndim != 4 or kernel.ndim != 4 or kernel.shape[:3] != (3, 3, inputs.shape[-1]):
        raise ValueError(
            "convolve_3x3 needs inputs (N, H, W, C) and a kernel (3, 3, C, O), "
            f"got {inputs.shape} and {kernel.shape}."
        )
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding must be 'SAME' or 'VALID', got {padding!r}.")
    if padding == "VALID" and min(inputs.shape[1:3]) < 3:
        raise ValueError(
            "A 3 x 3 convolution without padding needs images of at least 3 x 3 pixels, "
            f"got {inputs.shape[1]} x {inputs.shape[2]}."
        )
    return jax.lax.platform_dependent(
        inputs,
        kernel,
        cpu=partial(_in_tiles if in_tiles else _by_patches, padding=padding),
        default=partial(_by_lax, padding=padding),
    )


def rectified_3x3(
    inputs: Float[Array, "N H W C"],
    kernel: Float[Array, "3 3 C O"],
    shift: Float[Array, "O"],
    scale: Float[Array, "O"],
    *,
    padding: Padding = "SAME",
    pools: bool = False,
) -> Float[Array, "N rows columns O"]:
    """Return `max(0, (convolution - shift) scale)`, over blocks of 2 x 2 pixels its maximum.

    To the bit what these steps give one after the other, in an order that takes less: where pixels
    are pooled the maximum is taken first, which no increasing function changes; else the others are
    done in tiles, since few channels are short rows. For values only: derivatives are those of
    `convolve_3x3`.

    Args:
        inputs: as in `convolve_3x3`.
        kernel: likewise.
        shift: of every channel.
        scale: likewise, positive.
        padding: as in `convolve_3x3`.
        pools: whether to pool. Static.

    Returns:
        Images of `O` channels.
    """

    def after(outputs: Array, repeated: int = 1) -> Array:
        low, factor = (jnp.tile(own, repeated).reshape(1, 1, 1, -1) for own in (shift, scale))
        return jax.nn.relu((outputs - low) * factor)

    def in_tiles(inputs: Array, kernel: Array) -> Array:
        tiles, height, width = _tiles(inputs, kernel, 1 if padding == "SAME" else 0)
        if pools:
            return after(max_pool_2x2(_in_order(tiles, height, width)))
        return _in_order(after(tiles, height * width), height, width)

    def by_lax(inputs: Array, kernel: Array) -> Array:
        outputs = _by_lax(inputs, kernel, padding=padding)
        return after(max_pool_2x2(outputs) if pools else outputs)

    return jax.lax.platform_dependent(inputs, kernel, cpu=in_tiles, default=by_lax)


def max_pool_2x2(inputs: Float[Array, "N H W C"]) -> Float[Array, "N rows columns C"]:
    """Take the maximum over blocks of 2 x 2 pixels; an odd last row or column is dropped.

    By reshaping: `lax.reduce_window` and its gradient are slow on CPUs under `vmap`. Where several
    pixels share the maximum, the gradient is divided among them.

    Args:
        inputs: images, channels last, `H, W >= 2`.

    Returns:
        Images of `H // 2` rows and `W // 2` columns.
    """
    images, rows, columns, channels = inputs.shape
    blocks = inputs[:, : rows // 2 * 2, : columns // 2 * 2].reshape(
        images, rows // 2, 2, columns // 2, 2, channels
    )
    return blocks.max(axis=(2, 4))


def _in_tiles(
    inputs: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], *, padding: Padding
) -> Float[Array, "N rows columns O"]:
    return _tiled(inputs, kernel, 1 if padding == "SAME" else 0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiled(
    inputs: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], border: int
) -> Float[Array, "N rows columns O"]:
    """Convolve images with `border` zeros around them."""
    return _in_order(*_tiles(inputs, kernel, border))


def _tiles(
    inputs: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], border: int
) -> tuple[Float[Array, "N rows columns outputs"], int, int]:
    """Convolve, all pixels of a tile as channels of one; and its rows and columns."""
    if border == 2:
        # XLA would take images that are smaller than the kernel for the kernel, which is slow.
        inputs = jnp.pad(inputs, ((0, 0), (2, 2), (2, 2), (0, 0)))
        inputs, border = jax.lax.optimization_barrier(inputs), 0
    _, rows, columns, channels = inputs.shape
    rows, columns, num_outputs = rows + 2 * border - 2, columns + 2 * border - 2, kernel.shape[-1]
    height, width = _tile(rows, columns, channels, num_outputs)
    tiles = jax.lax.conv_general_dilated(
        inputs,
        _kernel_of_tile(kernel, height, width),
        (height, width),
        ((border, border), (border, border)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return tiles, height, width


def _in_order(
    tiles: Float[Array, "N rows columns outputs"], height: int, width: int
) -> Float[Array, "N H W O"]:
    """Take tiles apart."""
    images, rows, columns, _ = tiles.shape
    tiles = tiles.reshape(images, rows, columns, height, width, -1)
    return tiles.swapaxes(2, 3).reshape(images, rows * height, columns * width, -1)


def _tiled_forward(
    inputs: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], border: int
) -> tuple[Float[Array, "N rows columns O"], tuple[Array, Array]]:
    return _tiled(inputs, kernel, border), (inputs, kernel)


def _tiled_backward(
    border: int, known: tuple[Array, Array], gradient: Float[Array, "N rows columns O"]
) -> tuple[Float[Array, "N H W C"], Float[Array, "3 3 C O"]]:
    inputs, kernel = known
    # XLA's own would be a convolution of images with zeros between the tiles.
    to_inputs: Any = _tiled(gradient, kernel[::-1, ::-1].swapaxes(2, 3), 2 - border)
    images, rows, columns, num_outputs = gradient.shape
    height, width = _tile(rows, columns, inputs.shape[-1], num_outputs)
    tiles = gradient.reshape(images, rows // height, height, columns // width, width, num_outputs)
    tiles = tiles.swapaxes(2, 3).reshape(images, rows // height, columns // width, -1)
    # Inside a loop XLA keeps the order of axes, and has a fast convolution for this one only:
    # channels are the images, images the channels, and the gradient is the kernel.
    to_tiles = jax.lax.conv_general_dilated(
        inputs.transpose(3, 1, 2, 0),
        tiles.transpose(1, 2, 0, 3),
        (1, 1),
        ((border, border), (border, border)),
        rhs_dilation=(height, width),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    of_tile = partial(_kernel_of_tile, height=height, width=width)
    (to_kernel,) = jax.linear_transpose(of_tile, kernel)(to_tiles.transpose(1, 2, 0, 3))
    return to_inputs, to_kernel


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _tile(rows: int, columns: int, channels: int, num_outputs: int) -> tuple[int, int]:
    """Rows and columns of a tile: powers of two that divide the image, about 32 outputs in all."""
    size = _TILE_OUTPUTS // num_outputs * (2 if channels < _FEW_CHANNELS else 1)
    if size < 2:
        return 1, 1
    return math.gcd(rows, 2 if size >= 4 else 1), math.gcd(columns, 4 if size >= 8 else 2)


def _kernel_of_tile(
    kernel: Float[Array, "3 3 C O"], height: int, width: int
) -> Float[Array, "rows columns C outputs"]:
    """The kernel once for each pixel of a tile, in its place among zeros."""
    channels, num_outputs = kernel.shape[2:]
    places = [
        jnp.pad(kernel, ((i, height - 1 - i), (j, width - 1 - j), (0, 0), (0, 0)))
        for i in range(height)
        for j in range(width)
    ]
    return jnp.stack(places, axis=3).reshape(
        height + 2, width + 2, channels, height * width * num_outputs
    )


def _by_patches(
    inputs: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], *, padding: Padding
) -> Float[Array, "N rows columns O"]:
    if padding == "SAME":
        inputs = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
        # Otherwise XLA pads anew inside each of the slices.
        inputs = jax.lax.optimization_barrier(inputs)
    images, rows, columns, channels = inputs.shape
    rows, columns = rows - 2, columns - 2
    # Columns first, then rows: six longer slices instead of nine.
    inputs = jnp.concatenate([inputs[:, :, j : j + columns] for j in range(3)], axis=-1)
    patches = jnp.concatenate([inputs[:, i : i + rows] for i in range(3)], axis=-1)
    outputs = patches.reshape(-1, 9 * channels) @ kernel.reshape(9 * channels, -1)
    return outputs.reshape(images, rows, columns, -1)


def _by_lax(
    inputs: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], *, padding: Padding
) -> Float[Array, "N rows columns O"]:
    return jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
