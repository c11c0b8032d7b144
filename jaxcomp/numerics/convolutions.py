"""Convolutions as patches and matrix products.

XLA's CPU back end multiplies matrices well, but of the convolutions it has only the plain ones in a
quick form; those that differentiation and batching make of them (dilated, with the batch as
channels, in groups) it runs by a naive loop. The patches of an image times the kernel as a matrix
are the same numbers, at the memory of the patches. Axis letters: `G` groups, `N` images, `C`
channels of a group, `O` outputs of a group, `K` places in the kernel, `P` places in the result.

The kernel and the result play the same part in a convolution: which of them is cut out of the
image is a matter of cost. Three forms give the same result:

- *by kernel*: for each place in the kernel the image moved to it, `(C K, P N)` in all;
- *by result*: for each place in the result its patch, `(N P, K C)`: the form for gradients in
  kernels, whose kernels are images and whose result is small;
- *by parts*: every pixel times the whole kernel, `(O K, pixels N)`, added up where they overlap:
  the form for gradients in images. Only where the result has no stride.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from jaxcomp.numerics.windows import Windows

_Pairs = Sequence[tuple[int, int]]


def convolution_as_product(
    lhs: Shaped[Array, "..."],
    rhs: Shaped[Array, "..."],
    *,
    window_strides: Sequence[int],
    padding: _Pairs,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Shaped[Array, "..."]:
    """Return what `lax.conv_general_dilated` does, by matrix products.

    The parameters are those of the primitive `conv_general_dilated`: padding in numbers, one
    dilation for each axis, dimension numbers as axes. Pure, and differentiable like slices and
    products.

    Args:
        lhs: images.
        rhs: kernels, of the dtype of the images.
        window_strides: of the result.
        padding: pixels before and after each axis; negative ones are cut off.
        lhs_dilation: distance of the pixels.
        rhs_dilation: distance of the kernel's entries.
        dimension_numbers: where batch, channels and space are.
        feature_group_count: groups of channels.
        batch_group_count: groups of images.
        precision: of the products.
        preferred_element_type: in which they are summed and returned.
    """
    numbers = dimension_numbers
    groups = feature_group_count * batch_group_count
    image = jnp.transpose(lhs, numbers.lhs_spec)
    kernel = jnp.transpose(rhs, numbers.rhs_spec)
    num_images, num_channels, *space = image.shape
    num_outputs, num_inputs, *window = kernel.shape
    if batch_group_count > 1:
        num_images //= groups
        image = image.reshape(groups, num_images, num_channels, *space)
    else:
        image = image.reshape(num_images, groups, num_inputs, *space)
        image = jnp.swapaxes(image, 0, 1)
    kernel = kernel.reshape(groups, num_outputs // groups, num_inputs, *window)
    result_dtype = jnp.dtype(preferred_element_type or lhs.dtype)
    is_short = jnp.issubdtype(result_dtype, jnp.floating) and result_dtype.itemsize < 4
    along = _Space(
        tuple(window),
        tuple(window_strides),
        tuple((low, high) for low, high in padding),
        tuple(lhs_dilation),
        tuple(rhs_dilation),
        precision,
        # Sums over blocks and places are taken in the dtype of the products.
        jnp.dtype(jnp.float32) if is_short else result_dtype,
    )
    result = along.convolve(image, kernel)  # (G, N, O, *P)
    result = jnp.swapaxes(result, 0, 1).reshape(num_images, num_outputs, *result.shape[3:])
    return jnp.transpose(result, np.argsort(numbers.out_spec).tolist()).astype(result_dtype)


class _Space(NamedTuple):
    """The part of a convolution that lies in space; images (G, N, C, *S), kernels (G, O, C, *K)."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    precision: Any
    dtype: jnp.dtype

    @property
    def rank(self) -> int:
        return len(self.window)

    def windows(self, before: int, after: int) -> Windows:
        """Lay the kernel over an image with other axes before and after those of space."""
        ones, more = (1,) * before, (1,) * after
        return Windows(
            ones + self.window + more,
            ones + self.strides + more,
            ((0, 0),) * before + self.padding + ((0, 0),) * after,
            ones + self.lhs_dilation + more,
            ones + self.rhs_dilation + more,
        )

    def convolve(self, image: Array, kernel: Array) -> Array:
        """Return (G, N, O, *P), in the form of the least memory."""
        groups, num_images, num_channels, *space = image.shape
        num_outputs = kernel.shape[1]
        counts = self.windows(0, 0).counts(space)
        if 0 in counts or image.size == 0 or kernel.size == 0:
            return jnp.zeros((groups, num_images, num_outputs, *counts), self.dtype)
        numbers = groups * prod(self.window) * image.dtype.itemsize
        by_kernel = numbers * num_channels * prod(counts)
        by_parts = numbers * num_outputs * prod(space)
        # Per image, a number that is copied costs as much as some multiplications.
        cost_of_patches = by_kernel * (1 + num_outputs / PRODUCTS_PER_COPY)
        cost_of_parts = by_parts * (1 + num_channels / PRODUCTS_PER_COPY)
        if set(self.strides) == {1} and cost_of_parts < cost_of_patches:
            form, block = self._by_parts, BLOCK_BYTES // by_parts
        elif prod(self.window) <= prod(counts):
            form, block = self._by_kernel, BLOCK_BYTES // by_kernel
        else:
            block = BLOCK_BYTES * num_channels // (by_kernel * num_images)
            return self._sum_over_channels(image, kernel, counts, block)
        return _over_blocks(lambda images: form(images, kernel, counts), image, block)

    def _by_kernel(self, image: Array, kernel: Array, counts: Sequence[int]) -> Array:
        groups, num_images, num_channels, *_ = image.shape
        moved = jnp.moveaxis(image, 1, -1)  # (G, C, *S, N): long rows to copy
        windows = self.windows(2, 1)
        padded = windows.pad(moved, jnp.zeros((), image.dtype))
        shape = (groups, num_channels, *counts, num_images)
        patches = windows.gather(padded, shape, axis=2)
        patches = patches.reshape(groups, num_channels * prod(self.window), -1)
        kernel = kernel.reshape(groups, kernel.shape[1], -1)
        result = self._product(kernel, patches)  # (G, O, P N)
        result = result.reshape(groups, -1, *counts, num_images)
        return jnp.moveaxis(result, -1, 1)

    def _by_result(self, image: Array, kernel: Array, counts: Sequence[int]) -> Array:
        groups, num_images, num_channels, *_ = image.shape
        moved = jnp.moveaxis(image, 2, -1)  # (G, N, *S, C)
        windows = self.windows(2, 1)
        padded = windows.pad(moved, jnp.zeros((), image.dtype))
        # The places in the kernel and in the result change their parts.
        windows = replace(
            windows,
            shape=(1, 1, *counts, 1),
            strides=windows.window_dilation,
            window_dilation=windows.strides,
        )
        shape = (groups, num_images, *self.window, num_channels)
        patches = windows.gather(padded, shape, axis=2)
        patches = patches.reshape(groups, num_images * prod(counts), -1)
        kernel = jnp.moveaxis(kernel, 2, -1).reshape(groups, kernel.shape[1], -1)
        result = self._product(patches, jnp.swapaxes(kernel, 1, 2))  # (G, N P, O)
        result = result.reshape(groups, num_images, *counts, -1)
        return jnp.moveaxis(result, -1, 2)

    def _sum_over_channels(
        self, image: Array, kernel: Array, counts: Sequence[int], block: int
    ) -> Array:
        num_blocks, block = _blocks(image.shape[2], block)
        if num_blocks == 1:
            return self._by_result(image, kernel, counts)
        pairs = _split(image, 2, num_blocks, block), _split(kernel, 2, num_blocks, block)

        def step(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return total + self._by_result(*pair, counts), None

        first = jax.eval_shape(lambda i, k: self._by_result(i[0], k[0], counts), *pairs)
        return lax.scan(step, jnp.zeros(first.shape, first.dtype), pairs)[0]

    def _by_parts(self, image: Array, kernel: Array, counts: Sequence[int]) -> Array:
        groups, num_images, num_channels, *space = image.shape
        moved = jnp.moveaxis(image, 1, -1)  # (G, C, *S, N)
        moved = moved.reshape(groups, num_channels, -1)
        # (G, K, O, C)
        kernel = jnp.moveaxis(kernel.reshape(*kernel.shape[:3], -1), 3, 1)
        kernel = kernel.reshape(groups, -1, num_channels)
        parts = self._product(kernel, moved)  # (G, K O, S N)
        parts = parts.reshape(groups, prod(self.window), -1, *space, num_images)
        # Pixel i and entry k of the kernel meet at i * lhs_dilation + low - k * rhs_dilation.
        places = Windows(
            (1, 1, *self.window, 1),
            (1, 1, *self.lhs_dilation, 1),
            ((0, 0), (0, 0), *((-low, 0) for low, _ in self.padding), (0, 0)),
            (1,) * (self.rank + 3),
            (1, 1, *(-d for d in self.rhs_dilation), 1),
        )
        result = places.scatter(
            lambda place: lax.dynamic_index_in_dim(parts, place, 1, keepdims=False),
            (groups, parts.shape[2], *counts, num_images),
        )  # (G, O, *P, N)
        return jnp.moveaxis(result, -1, 1)

    def _product(self, a: Array, b: Array) -> Array:
        """Multiply (G, m, k) by (G, k, n)."""
        options = {"precision": self.precision, "preferred_element_type": self.dtype}
        if a.shape[0] == 1:
            return lax.dot_general(a[0], b[0], (((1,), (0,)), ((), ())), **options)[None]
        return lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), **options)


BLOCK_BYTES = 2 * 2**20
"""What the patches of a block of images may take: they are read again while still in the cache."""


PRODUCTS_PER_COPY = 16
"""How many multiplications of a matrix product take as long as to copy a number."""


def _blocks(num_images: int, block: int) -> tuple[int, int]:
    """Return how many blocks there are and their even size."""
    num_blocks = -(-num_images // max(block, 1))
    whole = (n for n in range(num_blocks, 2 * num_blocks) if num_images % n == 0)
    num_blocks = next(whole, num_blocks)
    return num_blocks, -(-num_images // num_blocks)


def _split(x: Array, axis: int, num_blocks: int, block: int) -> Array:
    """Bring blocks of an axis to the front; the last one is filled up with zeros."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, num_blocks * block - x.shape[axis], 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    x = x.reshape(*x.shape[:axis], num_blocks, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _over_blocks(function: Callable[[Array], Array], image: Array, block: int) -> Array:
    """Map blocks of images, (G, N, ...)."""
    num_images = image.shape[1]
    num_blocks, block = _blocks(num_images, block)
    if num_blocks == 1:
        return function(image)
    results = lax.map(function, _split(image, 1, num_blocks, block))
    results = jnp.moveaxis(results, 0, 1)
    results = results.reshape(results.shape[0], -1, *results.shape[3:])
    return lax.slice_in_dim(results, 0, num_images, axis=1)
