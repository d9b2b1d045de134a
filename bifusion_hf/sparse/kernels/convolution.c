/* Sparse convolution over lists of pairs, in float32 and, where the processor multiplies bfloat16, in bfloat16.
 *
 * The output rows are cut into blocks, and its columns into panels of up to four vectors. A block's panel is summed up
 * in a scratch buffer that stays in the cache: for each offset of the kernel, the block's pairs are taken a few at a
 * time, their sums are held in registers while all input channels are multiplied in, and go back to the buffer. Inputs
 * are read in place through the pair's row number, so nothing is gathered, and no zero is multiplied.
 *
 * Each output row is summed in the order of offsets and channels, whatever the blocks and threads: results have the
 * same bits for any number of threads.
 *
 * Plain C with GCC's vector extensions: any processor runs it, wide vectors make it fast. Rows are contiguous. A "unit"
 * is four bytes: one float, or two neighbouring bfloat16.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "tiles.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES (VECTOR_BYTES / 4)

/* Vectors of a panel, at most, and rows that are summed together, so that rows x vectors sums, one row of weights and
 * one input fit the registers: 32 of them, or 16. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define MAX_VECTORS 4
#define ROWS(vectors) ((vectors) == 4 ? 6 : (vectors) == 3 ? 8 : 12)
#define GRADIENT_ROWS(vectors) ((vectors) == 4 ? 6 : 8)
#else
#define MAX_VECTORS 2
#define ROWS(vectors) ((vectors) == 2 ? 6 : 12)
#define GRADIENT_ROWS(vectors) ((vectors) == 2 ? 6 : 8)
#endif
#define MAX_ROWS 12
#define MAX_BLOCK_ROWS 256
/* Floats of a thread's gathered pairs in a kernel's gradient. */
#define GATHERED_FLOATS 16384
#define MAX_GATHERED_PAIRS 256
#define MAX_LINE 8

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 12")

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
typedef float unaligned_vector __attribute__((vector_size(VECTOR_BYTES), aligned(4)));
typedef int32_t integer_vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t four __attribute__((vector_size(16)));

typedef struct {
    int64_t vectors; /* of a panel */
    int64_t width;   /* columns of a panel */
    int64_t count;   /* panels that cover all columns */
} panels;

static panels panels_of(int64_t columns)
{
    int64_t vectors = (columns + LANES - 1) / LANES;
    panels p;
    p.count = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    p.vectors = (vectors + p.count - 1) / p.count;
    p.width = p.vectors * LANES;
    return p;
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* sum + unit * weights, lane by lane; for halves, both products of each unit. */
INLINE vector multiply_add(const int is_half, vector sum, const float *unit, vector weights)
{
#if defined(__AVX512BF16__)
    if (is_half) {
        integer_vector both = *(const int32_t *)unit - (integer_vector){0};
        return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)both, (__m512bh)weights);
    }
#endif
    return sum + *unit * weights;
}

int has_bfloat16(void)
{
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

/* Whether halves are multiplied by tiles. */
int has_tiles(void)
{
    return may_use_tiles();
}

INLINE uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    return (bits & 0x7fffffff) > 0x7f800000 ? (uint16_t)(bits >> 16 | 0x40) : (uint16_t)rounded; /* NaN stays NaN */
}

INLINE float from_bfloat16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* ---- Pairs: from a table int32 [volume, outputs] of input rows, `none` where there is none. ---- */

/* starts int64 [blocks * volume + 1]: where the pairs of each block and offset begin, -> how many there are. */
int64_t count_pairs(const int32_t *table, int64_t *starts, int64_t volume, int64_t outputs, int64_t none,
                    int64_t block_rows, int threads)
{
    int64_t blocks = (outputs + block_rows - 1) / block_rows, total = 0;
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t k = 0; k < volume; k++) {
            const int32_t *row = table + k * outputs;
            int32_t count = 0;
            for (int64_t u = block * block_rows; u < smaller((block + 1) * block_rows, outputs); u++)
                count += row[u] < none;
            starts[block * volume + k] = count;
        }
    for (int64_t i = 0; i < blocks * volume; i++) {
        int64_t count = starts[i];
        starts[i] = total;
        total += count;
    }
    return starts[blocks * volume] = total;
}

/* reads int32 [pairs]: input row; writes int16 [pairs]: output row within its block. */
void fill_pairs(const int32_t *table, const int64_t *starts, int32_t *reads, int16_t *writes, int64_t volume,
                int64_t outputs, int64_t none, int64_t block_rows, int threads)
{
    int64_t blocks = (outputs + block_rows - 1) / block_rows;
#pragma omp parallel for num_threads(threads)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t k = 0; k < volume; k++) {
            const int32_t *row = table + k * outputs;
            int64_t pair = starts[block * volume + k], first = block * block_rows;
            for (int64_t u = first; u < smaller(first + block_rows, outputs); u++)
                if (row[u] < none) {
                    reads[pair] = row[u];
                    writes[pair++] = (int16_t)(u - first);
                }
        }
}

/* ---- Weights by panel: [volume, panels, units, width], where a panel's rows follow each other. ---- */

/* Whether a float32 kernel [volume, in, out] serves as it is. */
int is_packed(int64_t out_channels)
{
    panels p = panels_of(out_channels);
    return p.count * p.width == out_channels;
}

int64_t packed_units(int64_t volume, int64_t in_channels, int64_t out_channels, int is_half)
{
    panels p = panels_of(out_channels);
    return volume * p.count * p.width * (is_half ? in_channels / 2 : in_channels);
}

/* target[u * width + j] = source[j * units + u], units of four bytes. */
INLINE void transpose(const uint32_t *source, uint32_t *target, int64_t units, int64_t columns, int64_t width)
{
    for (int64_t j = 0; j < columns; j += 4)
        for (int64_t u = 0; u < units; u += 4) {
            if (j + 4 > columns || u + 4 > units) {
                for (int64_t i = j; i < smaller(j + 4, columns); i++)
                    for (int64_t v = u; v < smaller(u + 4, units); v++)
                        target[v * width + i] = source[i * units + v];
                continue;
            }
            four row[4];
            UNROLL for (int i = 0; i < 4; i++)
                memcpy(&row[i], source + (j + i) * units + u, 16);
            four low = __builtin_shuffle(row[0], row[1], (four){0, 4, 1, 5});
            four high = __builtin_shuffle(row[0], row[1], (four){2, 6, 3, 7});
            four other_low = __builtin_shuffle(row[2], row[3], (four){0, 4, 1, 5});
            four other_high = __builtin_shuffle(row[2], row[3], (four){2, 6, 3, 7});
            row[0] = __builtin_shuffle(low, other_low, (four){0, 1, 4, 5});
            row[1] = __builtin_shuffle(low, other_low, (four){2, 3, 6, 7});
            row[2] = __builtin_shuffle(high, other_high, (four){0, 1, 4, 5});
            row[3] = __builtin_shuffle(high, other_high, (four){2, 3, 6, 7});
            UNROLL for (int i = 0; i < 4; i++)
                memcpy(target + (u + i) * width + j, &row[i], 16);
        }
}

/* Part of one row, or two halves' rows interleaved: target[0 .. width) = the columns, zeros from `present` on. */
INLINE void gather_row(const int is_half, const int64_t width, const void *even, const void *odd, int64_t present,
                       float *target)
{
    if (present < width)
        memset(target, 0, width * sizeof(float));
    if (is_half)
        for (int64_t j = 0; j < present; j++)
            ((uint32_t *)target)[j] = ((const uint16_t *)even)[j] | (uint32_t)((const uint16_t *)odd)[j] << 16;
    else
        memcpy(target, even, present * sizeof(float));
}

/* kernel [volume, in, out], or [volume, out, in] where is_transposed; is_mirrored takes the opposite offsets. Halves
 * have an even number of channels in. */
void pack_weights(const void *kernel, void *packed, int64_t volume, int64_t in_channels, int64_t out_channels,
                  int is_transposed, int is_mirrored, int is_half, int threads)
{
    const int64_t halves = is_half ? 2 : 1, bytes = is_half ? 2 : 4, units = in_channels / halves;
    panels p = panels_of(out_channels);
#pragma omp parallel for num_threads(threads)
    for (int64_t task = 0; task < volume * p.count; task++) {
        int64_t k = task / p.count, first = task % p.count * p.width, columns = smaller(p.width, out_channels - first);
        const char *source = kernel;
        source += (is_mirrored ? volume - 1 - k : k) * in_channels * out_channels * bytes;
        float *target = (float *)packed + task * units * p.width;
        if (is_transposed) {
            if (columns < p.width)
                memset(target, 0, units * p.width * sizeof(float));
            transpose((const uint32_t *)(source + first * in_channels * bytes), (uint32_t *)target, units, columns,
                      p.width);
            continue;
        }
        source += first * bytes;
        for (int64_t u = 0; u < units; u++, source += halves * out_channels * bytes)
            if (is_half)
                gather_row(1, p.width, source, source + out_channels * bytes, columns, target + u * p.width);
            else
                gather_row(0, p.width, source, source, columns, target + u * p.width);
    }
}

/* ---- Convolution. ---- */

/* sums[writes[i]] += inputs[reads[i]] @ weights for `rows` pairs; all but the channels is known to the compiler. */
INLINE void add_rows(const int is_half, const int vectors, const int rows, const float *inputs, const int32_t *reads,
                     const int16_t *writes, const float *weights, int64_t weight_step, int64_t units, float *sums)
{
    vector sum[MAX_ROWS][MAX_VECTORS];
    const float *input[MAX_ROWS];
    UNROLL for (int r = 0; r < rows; r++) {
        input[r] = inputs + reads[r] * units;
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = *(const vector *)(sums + (writes[r] * vectors + v) * LANES);
    }
    for (int64_t c = 0; c < units; c++, weights += weight_step) {
        vector weight[MAX_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            weight[v] = *(const unaligned_vector *)(weights + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++)
                sum[r][v] = multiply_add(is_half, sum[r][v], input[r] + c, weight[v]);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            *(vector *)(sums + (writes[r] * vectors + v) * LANES) = sum[r][v];
}

#define ADD_ROWS(rows) add_rows(is_half, vectors, rows, inputs, reads, writes, weights, weight_step, units, sums)

/* The same for any number of pairs. */
INLINE void add_pairs(const int is_half, const int vectors, int64_t count, const float *inputs, const int32_t *reads,
                      const int16_t *writes, const float *weights, int64_t weight_step, int64_t units, float *sums)
{
    const int rows = ROWS(vectors);
    for (; count >= rows; count -= rows, reads += rows, writes += rows)
        ADD_ROWS(rows);
    switch (count) {
    case 1: ADD_ROWS(1); break;
    case 2: ADD_ROWS(2); break;
    case 3: ADD_ROWS(3); break;
    case 4: ADD_ROWS(4); break;
    case 5: ADD_ROWS(5); break;
    case 6: ADD_ROWS(6); break;
    case 7: ADD_ROWS(7); break;
    case 8: ADD_ROWS(8); break;
    case 9: ADD_ROWS(9); break;
    case 10: ADD_ROWS(10); break;
    case 11: ADD_ROWS(11); break;
    }
}

#define DEFINE_ADDER(name, is_half, vectors)                                                                          \
    static void name(int64_t count, const float *inputs, const int32_t *reads, const int16_t *writes,                 \
                     const float *weights, int64_t weight_step, int64_t units, float *sums)                           \
    {                                                                                                                 \
        add_pairs(is_half, vectors, count, inputs, reads, writes, weights, weight_step, units, sums);                 \
    }
DEFINE_ADDER(add_pairs_1, 0, 1)
DEFINE_ADDER(add_pairs_2, 0, 2)
#if MAX_VECTORS == 4
DEFINE_ADDER(add_pairs_3, 0, 3)
DEFINE_ADDER(add_pairs_4, 0, 4)
#endif
#if defined(__AVX512BF16__)
DEFINE_ADDER(add_half_pairs_1, 1, 1)
DEFINE_ADDER(add_half_pairs_2, 1, 2)
DEFINE_ADDER(add_half_pairs_3, 1, 3)
DEFINE_ADDER(add_half_pairs_4, 1, 4)
#endif

static pair_adder *adder(int is_half, int64_t vectors)
{
    static pair_adder *const adders[2][MAX_VECTORS] = {
#if MAX_VECTORS == 4
        {add_pairs_1, add_pairs_2, add_pairs_3, add_pairs_4},
#else
        {add_pairs_1, add_pairs_2},
#endif
#if defined(__AVX512BF16__)
        {add_half_pairs_1, add_half_pairs_2, add_half_pairs_3, add_half_pairs_4},
#endif
    };
    return adders[is_half][vectors - 1];
}

/* One row of sums becomes outputs: outputs = sums * scale + shift + shortcut, at least 0 where is_rectified. */
INLINE void finish_row(const int is_half, float *sums, void *outputs, int64_t columns, const float *scale,
                       const float *shift, const void *shortcut, int is_rectified)
{
    if (scale)
        for (int64_t j = 0; j < columns; j++)
            sums[j] = sums[j] * scale[j] + shift[j];
    if (shortcut && is_half)
        for (int64_t j = 0; j < columns; j++)
            sums[j] += from_bfloat16(((const uint16_t *)shortcut)[j]);
    else if (shortcut)
        for (int64_t j = 0; j < columns; j++)
            sums[j] += ((const float *)shortcut)[j];
    if (is_rectified)
        for (int64_t j = 0; j < columns; j++)
            sums[j] = sums[j] < 0 ? 0 : sums[j]; /* NaN stays NaN */
    if (is_half)
        for (int64_t j = 0; j < columns; j++)
            ((uint16_t *)outputs)[j] = to_bfloat16(sums[j]);
    else
        memcpy(outputs, sums, columns * sizeof(float));
}

/* outputs [outputs, out] = the sum over offsets k of inputs[reads] @ weights[k], finished; halves in, halves out.
 *
 * weights: packed, or a float32 kernel [volume, in, out] with packed = 0; in_channels of halves is even.
 * scale, shift: float [out] or NULL; shortcut: [outputs, out] as the outputs, or NULL. */
void convolve(const float *inputs, const float *weights, void *outputs, const int64_t *starts, const int32_t *reads,
              const int16_t *writes, const float *scale, const float *shift, const void *shortcut, int64_t num_outputs,
              int64_t block_rows, int64_t volume, int64_t in_channels, int64_t out_channels, int packed,
              int is_rectified, int is_half, int threads)
{
    panels p = panels_of(out_channels);
    int64_t blocks = (num_outputs + block_rows - 1) / block_rows, units = is_half ? in_channels / 2 : in_channels;
    int64_t weight_step = packed ? p.width : out_channels;
    int64_t panel_step = packed ? units * p.width : p.width;
    int64_t offset_step = packed ? p.count * units * p.width : in_channels * out_channels;
    const int64_t chunk = is_half && may_use_tiles() ? tile_chunk(units) : 0;
    pair_adder *add = chunk ? tile_adder(p.vectors) : adder(is_half, p.vectors);
#pragma omp parallel num_threads(threads)
    {
        tile_shapes before;
        if (chunk)
            shape_tiles(chunk, &before);
        float sums[MAX_BLOCK_ROWS * MAX_VECTORS * LANES] __attribute__((aligned(VECTOR_BYTES)));
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < blocks * p.count; task++) {
            int64_t block = task / p.count, panel = task % p.count, first = block * block_rows;
            int64_t rows = smaller(block_rows, num_outputs - first);
            const int64_t *start = starts + block * volume;
            memset(sums, 0, rows * p.width * sizeof(float));
            for (int64_t k = 0; k < volume; k++)
                add(start[k + 1] - start[k], inputs, reads + start[k], writes + start[k],
                    weights + k * offset_step + panel * panel_step, weight_step, units, sums);
            int64_t column = panel * p.width, columns = smaller(p.width, out_channels - column);
            const float *scales = scale ? scale + column : NULL, *shifts = scale ? shift + column : NULL;
            for (int64_t r = 0; r < rows; r++) {
                int64_t place = ((first + r) * out_channels + column) * (is_half ? 2 : 4);
                char *output = (char *)outputs + place;
                const char *added = shortcut ? (const char *)shortcut + place : NULL;
                if (is_half)
                    finish_row(1, sums + r * p.width, output, columns, scales, shifts, added, is_rectified);
                else
                    finish_row(0, sums + r * p.width, output, columns, scales, shifts, added, is_rectified);
            }
        }
        if (chunk)
            restore_tiles(&before);
    }
}

/* ---- Gradient of the kernel. ---- */

enum { FLOATS, HALVES, TILES };

/* Columns `first` to `last` of rows, in strips: gathered [strips, units, width], with zeros beyond the last column and
 * the last row. A unit is one row's float, or two rows' halves. */
INLINE void gather(const int is_half, const int width, const void *rows, const void *zeros, const int64_t *numbers,
                   int64_t count, int64_t units, int64_t columns, int64_t first, int64_t last, float *gathered)
{
    const int64_t bytes = is_half ? 2 : 4;
    for (int64_t unit = 0; unit < units; unit++) {
        int64_t number = is_half ? 2 * unit : unit;
        const char *even = zeros, *odd = zeros;
        if (number < count)
            even = (const char *)rows + numbers[number] * columns * bytes;
        if (is_half && number + 1 < count)
            odd = (const char *)rows + numbers[number + 1] * columns * bytes;
        float *target = gathered + unit * width;
        int64_t strip = first;
        /* All but the last strip are full: their width is known to the compiler. */
        for (; strip + width <= smaller(last, columns); strip += width, target += units * width)
            gather_row(is_half, width, even + strip * bytes, odd + strip * bytes, width, target);
        for (; strip < last; strip += width, target += units * width)
            gather_row(is_half, width, even + strip * bytes, odd + strip * bytes, columns - strip, target);
    }
}

/* sums [rows, columns] += inputs^T @ gradients of gathered pairs, for one strip of each. */
INLINE void add_products(const int is_half, const int vectors, const float *inputs, const float *gradients,
                         int64_t units, float *sums, int64_t sum_step, int64_t present_rows, int64_t present_columns)
{
    const int rows = GRADIENT_ROWS(vectors);
    vector sum[MAX_ROWS][MAX_VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = (vector){0};
    for (int64_t unit = 0; unit < units; unit++, inputs += rows, gradients += vectors * LANES) {
        vector gradient[MAX_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            gradient[v] = *(const unaligned_vector *)(gradients + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++)
                sum[r][v] = multiply_add(is_half, sum[r][v], inputs + r, gradient[v]);
    }
    if (present_rows >= rows && present_columns >= vectors * LANES) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++)
                *(unaligned_vector *)(sums + r * sum_step + v * LANES) += sum[r][v];
        return;
    }
    float result[MAX_ROWS][MAX_VECTORS * LANES];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            *(unaligned_vector *)(result[r] + v * LANES) = sum[r][v];
    for (int64_t r = 0; r < smaller(rows, present_rows); r++)
        for (int64_t j = 0; j < smaller(vectors * LANES, present_columns); j++)
            sums[r * sum_step + j] += result[r][j];
}

/* sums [in, out] of one offset += the products of gathered pairs, for the input channels from `first` to `last`. */
INLINE void add_gathered(const int form, const int vectors, const void *inputs, const void *gradients,
                         const void *zeros, const int64_t *reads, const int64_t *writes, int64_t count,
                         int64_t in_channels, int64_t out_channels, int64_t first, int64_t last, float *buffer,
                         float *sums)
{
    const int is_half = form != FLOATS, rows = form == TILES ? TILE_ROWS : GRADIENT_ROWS(vectors);
    const int width = vectors * LANES;
    int64_t units = is_half ? (count + 1) / 2 : count;
    if (form == TILES)
        units = (units + TILE_UNITS - 1) / TILE_UNITS * TILE_UNITS;
    float *gathered_inputs = buffer + units * ((out_channels + width - 1) / width * width);
    gather(is_half, width, gradients, zeros, writes, count, units, out_channels, 0, out_channels, buffer);
    gather(is_half, rows, inputs, zeros, reads, count, units, in_channels, first, last, gathered_inputs);
    if (form == TILES)
        transpose_tiles(gathered_inputs, (last - first) / TILE_ROWS * units / TILE_UNITS);
    for (int64_t j = 0; j < out_channels; j += width)
        for (int64_t c = first; c < last; c += rows) {
            const float *input = gathered_inputs + (c - first) * units, *gradient = buffer + j * units;
            float *sum = sums + c * out_channels + j;
            if (form == TILES)
                add_tile_products(vectors, input, gradient, units, sum, out_channels, in_channels - c,
                                  out_channels - j);
            else
                add_products(is_half, vectors, input, gradient, units, sum, out_channels, in_channels - c,
                             out_channels - j);
        }
}

typedef void product_adder(const void *, const void *, const void *, const int64_t *, const int64_t *, int64_t, int64_t,
                           int64_t, int64_t, int64_t, float *, float *);

#define DEFINE_PRODUCT_ADDER(name, form, vectors)                                                                     \
    static void name(const void *inputs, const void *gradients, const void *zeros, const int64_t *reads,              \
                     const int64_t *writes, int64_t count, int64_t in_channels, int64_t out_channels, int64_t first,  \
                     int64_t last, float *buffer, float *sums)                                                        \
    {                                                                                                                 \
        add_gathered(form, vectors, inputs, gradients, zeros, reads, writes, count, in_channels, out_channels, first, \
                     last, buffer, sums);                                                                             \
    }
DEFINE_PRODUCT_ADDER(add_products_1, FLOATS, 1)
DEFINE_PRODUCT_ADDER(add_products_2, FLOATS, 2)
#if MAX_VECTORS == 4
DEFINE_PRODUCT_ADDER(add_products_3, FLOATS, 3)
DEFINE_PRODUCT_ADDER(add_products_4, FLOATS, 4)
#endif
#if defined(__AVX512BF16__)
DEFINE_PRODUCT_ADDER(add_half_products_1, HALVES, 1)
DEFINE_PRODUCT_ADDER(add_half_products_2, HALVES, 2)
DEFINE_PRODUCT_ADDER(add_half_products_3, HALVES, 3)
DEFINE_PRODUCT_ADDER(add_half_products_4, HALVES, 4)
#endif
#if defined(HAS_TILES)
DEFINE_PRODUCT_ADDER(add_tiled_products_1, TILES, 1)
DEFINE_PRODUCT_ADDER(add_tiled_products_2, TILES, 2)
DEFINE_PRODUCT_ADDER(add_tiled_products_3, TILES, 3)
DEFINE_PRODUCT_ADDER(add_tiled_products_4, TILES, 4)
#endif

static product_adder *adder_of_products(int form, int64_t vectors)
{
    static product_adder *const adders[3][MAX_VECTORS] = {
#if MAX_VECTORS == 4
        {add_products_1, add_products_2, add_products_3, add_products_4},
#else
        {add_products_1, add_products_2},
#endif
#if defined(__AVX512BF16__)
        {add_half_products_1, add_half_products_2, add_half_products_3, add_half_products_4},
#endif
#if defined(HAS_TILES)
        {add_tiled_products_1, add_tiled_products_2, add_tiled_products_3, add_tiled_products_4},
#endif
    };
    return adders[form][vectors - 1];
}

/* sums float [volume, in, out], zero before: for each offset the sum over its pairs of input^T x gradient.
 *
 * A thread takes all pairs of a line of offsets, in their order, for some of the input channels, so that the result
 * does not depend on the number of threads. The offsets of a line read nearly the same rows, which stay in the cache
 * from one to the next. Returns 0, or 1 without memory. */
int kernel_gradient(const void *inputs, const void *gradients, float *sums, const int64_t *starts,
                    const int32_t *reads, const int16_t *writes, int64_t num_outputs, int64_t block_rows,
                    int64_t volume, int64_t in_channels, int64_t out_channels, int is_half, int threads)
{
    panels p = panels_of(out_channels);
    const int form = !is_half ? FLOATS : may_use_tiles() ? TILES : HALVES;
    product_adder *add = adder_of_products(form, p.vectors);
    int64_t blocks = (num_outputs + block_rows - 1) / block_rows, line = 2;
    while (line <= MAX_LINE && volume % line)
        line++;
    if (line > MAX_LINE)
        line = 1;
    int64_t lines = volume / line, rows = form == TILES ? TILE_ROWS : GRADIENT_ROWS(p.vectors);
    int64_t strips = (in_channels + rows - 1) / rows;
    int64_t parts = smaller(strips, (8 * threads + lines - 1) / lines), part_strips = (strips + parts - 1) / parts;
    int64_t pair_floats = p.count * p.width + strips * rows;
    int64_t capacity = smaller(MAX_GATHERED_PAIRS, GATHERED_FLOATS / pair_floats / 2 * 2);
    if (capacity < 16)
        capacity = 16;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        int64_t from[MAX_LINE][MAX_GATHERED_PAIRS], to[MAX_LINE][MAX_GATHERED_PAIRS];
        /* Tiles are read fastest where a row is a line of the cache. */
        float *buffer = aligned_alloc(64, (capacity * pair_floats * sizeof(float) + 63) / 64 * 64);
        void *zeros = calloc(in_channels + out_channels, sizeof(float));
        if (!buffer || !zeros)
#pragma omp atomic write
            failed = 1;
        tile_shapes before;
        if (form == TILES)
            shape_tiles(TILE_UNITS, &before);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < lines * parts; task++) {
            /* The middle line of a submanifold convolution has the most pairs: it comes first. */
            int64_t first_offset = (lines / 2 + task / parts) % lines * line;
            int64_t first = task % parts * part_strips * rows, last = smaller(first + part_strips * rows, strips * rows);
            int64_t count[MAX_LINE] = {0};
            if (failed || first >= last)
                continue;
            for (int64_t block = 0; block <= blocks; block++)
                for (int64_t k = 0; k < line; k++) {
                    float *sum = sums + (first_offset + k) * in_channels * out_channels;
                    const int64_t *start = starts + block * volume + first_offset + k;
                    if (block == blocks) {
                        if (count[k])
                            add(inputs, gradients, zeros, from[k], to[k], count[k], in_channels, out_channels, first,
                                last, buffer, sum);
                        continue;
                    }
                    for (int64_t pair = start[0]; pair < start[1]; pair++) {
                        from[k][count[k]] = reads[pair];
                        to[k][count[k]++] = block * block_rows + writes[pair];
                        if (count[k] == capacity) {
                            add(inputs, gradients, zeros, from[k], to[k], capacity, in_channels, out_channels, first,
                                last, buffer, sum);
                            count[k] = 0;
                        }
                    }
                }
        }
        if (form == TILES)
            restore_tiles(&before);
        free(buffer);
        free(zeros);
    }
    return failed;
}
