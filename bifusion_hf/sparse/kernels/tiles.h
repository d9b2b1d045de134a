/* Sums of a few pairs by a processor's matrix registers ("tiles": Intel's AMX), sixteen pairs at a time.
 *
 * A tile holds 16 rows of 64 bytes, and one instruction multiplies 16 x 32 halves by 32 x 16. The rows of pairs lie
 * apart, so they are copied side by side first; weights are read as they are packed. The sums over an offset's channels
 * start at zero and are added to the buffer, so that each row's sum is the same whatever it shares its tile with.
 */
#ifndef BIFUSION_TILES_H
#define BIFUSION_TILES_H

#include <stdint.h>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE_ROWS 16
#define TILE_UNITS 16
#define TILE_BYTES 64
/* Tiles: the sums of up to four vectors from 0 on, the pairs' inputs, and vectors' weights from 5 on. */
#define INPUT_TILE 4
#define TILES 8

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

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
    for (int tile = 0; tile < TILES; tile++) {
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

#define LOAD_WEIGHTS(vector, tile) _tile_loadd(tile, weights + (vector) * TILE_UNITS, weight_step * 4)
#define EACH_VECTOR(ACTION)                                                                                           \
    ACTION(0, 5);                                                                                                     \
    if (vectors > 1)                                                                                                  \
        ACTION(1, 6);                                                                                                 \
    if (vectors > 2)                                                                                                  \
        ACTION(2, 7);                                                                                                 \
    if (vectors > 3)                                                                                                  \
        ACTION(3, 5)
#define CLEAR(vector, tile) _tile_zero(vector)
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
    if (count && is_kept) {
        EACH_VECTOR(LOAD_WEIGHTS);
    }
    for (; count > 0; count -= TILE_ROWS, reads += TILE_ROWS, writes += TILE_ROWS) {
        const int64_t pairs = count < TILE_ROWS ? count : TILE_ROWS;
        EACH_VECTOR(CLEAR);
        for (int64_t first = 0; first < units; first += chunk) {
            /* What is left in rows of no pair makes products that nobody reads. */
            for (int64_t i = 0; i < pairs; i++)
                _mm512_store_ps(rows[i], _mm512_maskz_loadu_ps(present, inputs + reads[i] * units + first));
            _tile_loadd(INPUT_TILE, rows, TILE_BYTES);
            if (is_kept) {
                EACH_VECTOR(MULTIPLY);
                break;
            }
            EACH_VECTOR(LOAD_AND_MULTIPLY);
            weights += chunk * weight_step;
        }
        if (!is_kept)
            weights -= units * weight_step;
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

#endif
#endif
