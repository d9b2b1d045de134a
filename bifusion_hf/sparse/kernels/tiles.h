/* Sums of a few pairs by a processor's matrix registers ("tiles": Intel's AMX), sixteen pairs at a time.
 *
 * A tile holds 16 rows of 64 bytes, and one instruction multiplies 16 x 32 halves by 32 x 16. The rows of pairs lie
 * apart, so they are copied side by side first; weights are read as they are packed. The sums over an offset's channels
 * start at zero and are added to the buffer, so that each row's sum is the same whatever it shares its tile with.
 */
#ifndef BIFUSION_TILES_H
#define BIFUSION_TILES_H

#include <stdint.h>

#define TILE_ROWS 16
#define TILE_UNITS 16
#define TILE_BYTES 64

typedef void pair_adder(int64_t, const float *, const int32_t *, const int16_t *, const float *, int64_t, int64_t,
                        float *);

/* As the processor has them. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Tiles: the sums of up to four vectors from 0 on, the pairs' inputs, and vectors' weights from 5 on. */
#define INPUT_TILE 4
#define NUM_TILES 8

/* Units that are multiplied at once, a part of all units; 0 where they cannot be cut into equal parts. */
static inline int64_t tile_chunk(int64_t units)
{
    int64_t chunks = (units + TILE_UNITS - 1) / TILE_UNITS;
    return units % chunks ? 0 : units / chunks;
}

/* Linux gives a process its tiles when it asks for them. */
static inline int may_use_tiles(void)
{
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/* Shapes this thread's tiles for chunks of units; `before` takes the shapes that another library may count on. */
static inline void shape_tiles(int64_t chunk, tile_shapes *before)
{
    tile_shapes shapes = {.palette = 1};
    for (int tile = 0; tile < NUM_TILES; tile++) {
        shapes.rows[tile] = tile > INPUT_TILE ? chunk : TILE_ROWS;
        shapes.row_bytes[tile] = tile == INPUT_TILE ? 4 * chunk : TILE_BYTES;
    }
    _tile_storeconfig(before);
    _tile_loadconfig(&shapes);
}

static inline void restore_tiles(const tile_shapes *before)
{
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* What is done for each vector of a panel, on units from `first` on; `vectors` is known to the compiler. */
#define EACH_VECTOR(ACTION)                                                                                           \
    ACTION(0, 5);                                                                                                     \
    if (vectors > 1)                                                                                                  \
        ACTION(1, 6);                                                                                                 \
    if (vectors > 2)                                                                                                  \
        ACTION(2, 7);                                                                                                 \
    if (vectors > 3)                                                                                                  \
        ACTION(3, 5)
#define CLEAR(vector, tile) _tile_zero(vector)
#define LOAD_WEIGHTS(vector, tile)                                                                                    \
    _tile_loadd(tile, weights + first * weight_step + (vector) * TILE_UNITS, weight_step * 4)
#define MULTIPLY(vector, tile) _tile_dpbf16ps(vector, INPUT_TILE, tile)
#define LOAD_AND_MULTIPLY(vector, tile)                                                                               \
    do {                                                                                                              \
        LOAD_WEIGHTS(vector, tile);                                                                                   \
        MULTIPLY(vector, tile);                                                                                       \
    } while (0)
#define STORE(vector, tile) _tile_stored(vector, products[vector], TILE_BYTES)

/* sums[writes[i]] += inputs[reads[i]] @ weights; rows of sums have `vectors` x 16 floats. */
static inline __attribute__((always_inline)) void
add_tiles(const int vectors, int64_t count, const float *inputs, const int32_t *reads, const int16_t *writes,
          const float *weights, int64_t weight_step, int64_t units, float *sums)
{
    float rows[TILE_ROWS][TILE_UNITS] __attribute__((aligned(TILE_BYTES)));
    float products[4][TILE_ROWS][TILE_UNITS] __attribute__((aligned(TILE_BYTES)));
    const int64_t chunk = tile_chunk(units);
    const __mmask16 present = (__mmask16)((1u << chunk) - 1);
    /* Weights of one chunk stay in their tiles, if there is one for each vector. */
    const int is_kept = vectors < 4 && chunk == units;
    int64_t first = 0;
    if (count && is_kept) {
        EACH_VECTOR(LOAD_WEIGHTS);
    }
    for (; count > 0; count -= TILE_ROWS, reads += TILE_ROWS, writes += TILE_ROWS) {
        const int64_t pairs = count < TILE_ROWS ? count : TILE_ROWS;
        EACH_VECTOR(CLEAR);
        for (first = 0; first < units; first += chunk) {
            /* What is left in rows of no pair makes products that nobody reads. */
            for (int64_t i = 0; i < pairs; i++)
                _mm512_store_ps(rows[i], _mm512_maskz_loadu_ps(present, inputs + reads[i] * units + first));
            _tile_loadd(INPUT_TILE, rows, TILE_BYTES);
            if (is_kept) {
                EACH_VECTOR(MULTIPLY);
            } else {
                EACH_VECTOR(LOAD_AND_MULTIPLY);
            }
        }
        EACH_VECTOR(STORE);
        for (int64_t i = 0; i < pairs; i++) {
            float *sum = sums + writes[i] * vectors * TILE_UNITS;
            for (int vector = 0; vector < vectors; vector++, sum += TILE_UNITS)
                _mm512_store_ps(sum, _mm512_load_ps(sum) + _mm512_load_ps(products[vector][i]));
        }
    }
}

#define DEFINE_TILE_ADDER(vectors)                                                                                    \
    static void add_tile_pairs_##vectors(int64_t count, const float *inputs, const int32_t *reads,                    \
                                         const int16_t *writes, const float *weights, int64_t weight_step,            \
                                         int64_t units, float *sums)                                                  \
    {                                                                                                                 \
        add_tiles(vectors, count, inputs, reads, writes, weights, weight_step, units, sums);                          \
    }
DEFINE_TILE_ADDER(1)
DEFINE_TILE_ADDER(2)
DEFINE_TILE_ADDER(3)
DEFINE_TILE_ADDER(4)

static inline pair_adder *tile_adder(int64_t vectors)
{
    static pair_adder *const adders[] = {add_tile_pairs_1, add_tile_pairs_2, add_tile_pairs_3, add_tile_pairs_4};
    return adders[vectors - 1];
}

/* Blocks of 16 x 16 units, each transposed in its place. */
static inline void transpose_tiles(float *blocks, int64_t count)
{
    for (float *block = blocks; block < blocks + count * TILE_ROWS * TILE_UNITS; block += TILE_ROWS * TILE_UNITS) {
        __m512d row[TILE_ROWS];
        __m512 pair[TILE_ROWS], quarter[TILE_ROWS];
        /* Within each quarter of the rows, 4 x 4 units. */
        for (int i = 0; i < TILE_ROWS; i += 2) {
            __m512 low = _mm512_load_ps(block + i * TILE_UNITS), high = _mm512_load_ps(block + (i + 1) * TILE_UNITS);
            pair[i] = _mm512_unpacklo_ps(low, high);
            pair[i + 1] = _mm512_unpackhi_ps(low, high);
        }
        for (int i = 0; i < TILE_ROWS; i += 4)
            for (int j = 0; j < 2; j++) {
                row[i + 2 * j] = _mm512_unpacklo_pd((__m512d)pair[i + j], (__m512d)pair[i + 2 + j]);
                row[i + 2 * j + 1] = _mm512_unpackhi_pd((__m512d)pair[i + j], (__m512d)pair[i + 2 + j]);
            }
        /* Then the quarters themselves. */
        for (int i = 0; i < 4; i++)
            for (int half = 0; half < TILE_ROWS; half += 8) {
                __m512 upper = (__m512)row[half + i], lower = (__m512)row[half + 4 + i];
                quarter[half + i] = _mm512_shuffle_f32x4(upper, lower, 0x88);
                quarter[half + 4 + i] = _mm512_shuffle_f32x4(upper, lower, 0xdd);
            }
        for (int i = 0; i < 8; i++) {
            _mm512_store_ps(block + i * TILE_UNITS, _mm512_shuffle_f32x4(quarter[i], quarter[8 + i], 0x88));
            _mm512_store_ps(block + (8 + i) * TILE_UNITS, _mm512_shuffle_f32x4(quarter[i], quarter[8 + i], 0xdd));
        }
    }
}

/* sums [rows, columns] += inputs @ weights: of 16 rows and `vectors` x 16 columns, those that are present.
 *
 * inputs [units / 16, 16 rows, 16 units], weights [units, vectors x 16], here gradients; units are a multiple of 16. */
static inline __attribute__((always_inline)) void
add_tile_products(const int vectors, const float *inputs, const float *weights, int64_t units, float *sums,
                  int64_t sum_step, int64_t present_rows, int64_t present_columns)
{
    float products[4][TILE_ROWS][TILE_UNITS] __attribute__((aligned(TILE_BYTES)));
    const int64_t weight_step = vectors * TILE_UNITS;
    EACH_VECTOR(CLEAR);
    for (int64_t first = 0; first < units; first += TILE_UNITS) {
        _tile_loadd(INPUT_TILE, inputs + first * TILE_ROWS, TILE_BYTES);
        EACH_VECTOR(LOAD_AND_MULTIPLY);
    }
    EACH_VECTOR(STORE);
    for (int vector = 0; vector < vectors; vector++, present_columns -= TILE_UNITS, sums += TILE_UNITS)
        for (int64_t i = 0; i < TILE_ROWS && i < present_rows && present_columns > 0; i++) {
            const __mmask16 present = present_columns < 16 ? (1u << present_columns) - 1 : 0xffff;
            float *sum = sums + i * sum_step;
            _mm512_mask_storeu_ps(sum, present,
                                  _mm512_maskz_loadu_ps(present, sum) + _mm512_load_ps(products[vector][i]));
        }
}

#else

static inline int may_use_tiles(void) { return 0; }
static inline int64_t tile_chunk(int64_t units) { return 0 * units; }
static inline pair_adder *tile_adder(int64_t vectors) { return (void)vectors, (pair_adder *)0; }
static inline void shape_tiles(int64_t chunk, tile_shapes *before) { (void)chunk, (void)before; }
static inline void restore_tiles(const tile_shapes *before) { (void)before; }
static inline void transpose_tiles(float *blocks, int64_t count) { (void)blocks, (void)count; }
static inline void add_tile_products(int vectors, const float *inputs, const float *weights, int64_t units,
                                     float *sums, int64_t sum_step, int64_t present_rows, int64_t present_columns)
{
    (void)vectors, (void)inputs, (void)weights, (void)units;
    (void)sums, (void)sum_step, (void)present_rows, (void)present_columns;
}

#endif
#endif
