/* Sums by group in one pass over a large table, of which nothing else is written. Plain C, see convolution.c. */
#include <stdint.h>
#include <string.h>

/* Rows that a thread takes through all columns; their sums of some hundred groups stay in its cache. */
#define ROW_BLOCK 128

/* A bfloat16 by its bits: below 0, which -0 is not, nor NaN. */
static inline int is_negative(uint16_t half) { return half > 0x8000 && half <= 0xff80; }

/* For each row of a sample, and each group of its columns, the sum of the weights of the columns whose value is below
 * 0, in the order of the columns: the same bits for any number of threads.
 *
 * values [samples, columns, rows] of float, or of bfloat16 where is_half, weights float [samples, columns], group int64
 * [samples, columns], -1 = none, -> sums float [samples, groups, rows]. */
void sum_where_negative(const void *values, const float *weights, const int64_t *group, float *sums, int64_t samples,
                        int64_t rows, int64_t columns, int64_t groups, int is_half, int threads)
{
    int64_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
    for (int64_t sample = 0; sample < samples; sample++)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t first = block * ROW_BLOCK, left = rows - first, count = left < ROW_BLOCK ? left : ROW_BLOCK;
            float *own = sums + sample * groups * rows + first;
            for (int64_t g = 0; g < groups; g++)
                memset(own + g * rows, 0, count * sizeof(float));
            for (int64_t i = sample * columns; i < (sample + 1) * columns; i++) {
                if (group[i] < 0)
                    continue;
                float *sum = own + group[i] * rows, weight = weights[i];
                const float *value = (const float *)values + i * rows + first;
                const uint16_t *half = (const uint16_t *)values + i * rows + first;
                if (is_half)
                    for (int64_t r = 0; r < count; r++)
                        sum[r] += is_negative(half[r]) ? weight : 0;
                else
                    for (int64_t r = 0; r < count; r++)
                        sum[r] += value[r] < 0 ? weight : 0;
            }
        }
}
