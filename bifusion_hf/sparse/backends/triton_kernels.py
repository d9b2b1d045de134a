"""Triton's kernels of sparse convolution; importing this file needs Triton.

Each program writes outputs of its own, and its loops run in a fixed order: the same inputs give the same bits.
`tl.dot` sums in float32 whatever the inputs are.
"""

import triton
import triton.language as tl


@triton.jit
def _product(a, b, sums, PRECISION: tl.constexpr, IS_WIDENED: tl.constexpr):
    """sums + a @ b."""
    if IS_WIDENED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def _write(out, sums, row, column, is_kept, channels, scale, shift, shortcut, IS_RECTIFIED: tl.constexpr):
    """Finishes sums as `Finish` says, where there is a scale, and writes them to rows and columns of `out`."""
    place = row[:, None] * channels + column[None, :]
    if scale is not None:
        is_column = column < channels
        factor = tl.load(scale + column, mask=is_column, other=0.0)
        sums = sums * factor[None, :] + tl.load(shift + column, mask=is_column, other=0.0)[None, :]
    if shortcut is not None:
        sums += tl.load(shortcut + place, mask=is_kept, other=0.0).to(tl.float32)
    if IS_RECTIFIED:
        # A maximum would turn what is not a number into 0.
        sums = tl.where(sums < 0.0, 0.0, sums)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=is_kept)


@triton.jit
def convolve_rows(
    inputs,  # [num_inputs, in_channels]
    weights,  # [volume, in_channels, out_channels] by the strides below
    out,  # [rows, out_channels], or float32 [splits, rows, out_channels] where IS_SPLIT
    order,  # int64 [rows]: row of the output that each sorted row is
    table,  # int32 [volume, rows], rows sorted; num_inputs = none
    used,  # int32 [blocks, volume]: the offsets that a block of rows uses come first
    used_counts,  # int32 [blocks]: how many those are
    scale,  # float32 [out_channels], or None; so are shift and shortcut [rows, out_channels]
    shift,
    shortcut,
    rows,
    num_inputs,
    volume,
    in_channels,
    out_channels,
    offset_stride,
    in_stride,
    out_stride,
    splits,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    IS_MIRRORED: tl.constexpr,
    IS_RECTIFIED: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    """Outputs of a block of sorted rows and a block of channels, over a share of the offsets that the rows use."""
    # Programs that follow each other read the same rows.
    blocks_out = tl.cdiv(out_channels, BLOCK_OUT)
    block = tl.program_id(0) // blocks_out
    split = tl.program_id(1)
    sorted_row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = sorted_row < rows
    column = tl.program_id(0) % blocks_out * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_column = column < out_channels

    count = tl.load(used_counts + block)
    steps = tl.cdiv(in_channels, BLOCK_IN)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    # One loop over offsets and channels, not two, so that loads run ahead of products throughout.
    for step in range(count * split // splits * steps, count * (split + 1) // splits * steps):
        offset = tl.load(used + block * volume + step // steps)
        channel = step % steps * BLOCK_IN + tl.arange(0, BLOCK_IN)
        is_channel = channel < in_channels
        read = tl.load(table + offset.to(tl.int64) * rows + sorted_row, mask=is_row, other=num_inputs)
        source = inputs + read.to(tl.int64)[:, None] * in_channels + channel[None, :]
        a = tl.load(source, mask=(read < num_inputs)[:, None] & is_channel[None, :], other=0.0)
        if IS_MIRRORED:
            offset = volume - 1 - offset
        weight = weights + offset * offset_stride + channel[:, None] * in_stride + column[None, :] * out_stride
        b = tl.load(weight, mask=is_channel[:, None] & is_column[None, :], other=0.0)
        sums = _product(a, b, sums, PRECISION, IS_WIDENED)

    row = tl.load(order + sorted_row, mask=is_row, other=0)
    is_kept = is_row[:, None] & is_column[None, :]
    if IS_SPLIT:
        row += split.to(tl.int64) * rows
        _write(out, sums, row, column, is_kept, out_channels, None, None, None, False)
    else:
        _write(out, sums, row, column, is_kept, out_channels, scale, shift, shortcut, IS_RECTIFIED)


@triton.jit
def add_splits(
    parts,  # float32 [splits, rows, channels]
    out,  # [rows, channels]
    scale,
    shift,
    shortcut,
    rows,
    channels,
    splits,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    IS_RECTIFIED: tl.constexpr,
):
    """The sum of what `convolve_rows` left in parts, finished."""
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_kept = (row < rows)[:, None] & (column < channels)[None, :]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for split in range(splits):
        place = (row + split * rows)[:, None] * channels + column[None, :]
        sums += tl.load(parts + place, mask=is_kept, other=0.0)
    _write(out, sums, row, column, is_kept, channels, scale, shift, shortcut, IS_RECTIFIED)


@triton.jit
def sum_pairs(
    inputs,  # [num_inputs, in_channels]
    grads,  # [rows, out_channels]
    sums_out,  # float32 [splits, volume, in_channels, out_channels]
    reads,  # int32 [volume, rows]: input row of each pair of an offset; those without a pair come last
    writes,  # int32 [volume, rows]: output row
    pair_counts,  # int32 [volume]
    rows,
    volume,
    in_channels,
    out_channels,
    splits,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    """The sum of input x gradient over a share of an offset's pairs, for a block of either's channels."""
    blocks_out = tl.cdiv(out_channels, BLOCK_OUT)
    channel = tl.program_id(0) // blocks_out * BLOCK_IN + tl.arange(0, BLOCK_IN)
    column = tl.program_id(0) % blocks_out * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    offset, split = tl.program_id(1), tl.program_id(2)
    is_channel, is_column = channel < in_channels, column < out_channels

    count = tl.load(pair_counts + offset)
    share = tl.cdiv(count, splits * BLOCK_PAIRS) * BLOCK_PAIRS
    first = split * share
    last = tl.minimum(first + share, count)
    list_start = offset.to(tl.int64) * rows
    sums = tl.zeros((BLOCK_IN, BLOCK_OUT), tl.float32)
    for start in range(first, last, BLOCK_PAIRS):
        pair = start + tl.arange(0, BLOCK_PAIRS)
        is_pair = pair < last
        read = tl.load(reads + list_start + pair, mask=is_pair, other=0).to(tl.int64)
        write = tl.load(writes + list_start + pair, mask=is_pair, other=0).to(tl.int64)
        a = tl.load(
            inputs + read[:, None] * in_channels + channel[None, :],
            mask=is_pair[:, None] & is_channel[None, :],
            other=0.0,
        )
        b = tl.load(
            grads + write[:, None] * out_channels + column[None, :],
            mask=is_pair[:, None] & is_column[None, :],
            other=0.0,
        )
        sums = _product(tl.trans(a), b, sums, PRECISION, IS_WIDENED)

    place = ((split * volume + offset) * in_channels + channel)[:, None] * out_channels + column[None, :]
    tl.store(sums_out + place, sums, mask=is_channel[:, None] & is_column[None, :])


# The interpreter's products of bfloat16 are wrong.
IS_INTERPRETED = not isinstance(convolve_rows, triton.JITFunction)
