/* Sums by group in one pass over a large table, of which nothing else is written. Plain C, see convolution.c. */
#include <stdint.h>
#include <string.h>

/* For each row of a sample, and each group of its columns, the sum of the weights of the columns whose value is below
 * 0, in the order of the columns: the same bits for any number of threads.
 *
 * values float [samples, rows, columns], weights float [samples, columns], group int64 [samples, columns], -1 = none,
 * -> sums float [samples, rows, groups]. */
void sum_where_negative(const float *values, const float *weights, const int64_t *group, float *sums, int64_t samples,
                        int64_t rows, int64_t columns, int64_t groups, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < samples * rows; row++) {
        const float *value = values + row * columns, *weight = weights + row / rows * columns;
        const int64_t *place = group + row / rows * columns;
        float *sum = sums + row * groups;
        memset(sum, 0, groups * sizeof(float));
        for (int64_t i = 0; i < columns; i++)
            if (place[i] >= 0)
                sum[place[i]] += value[i] < 0 ? weight[i] : 0;
    }
}
