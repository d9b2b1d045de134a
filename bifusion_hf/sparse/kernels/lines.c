/* Where the voxels of a kernel's lines are among sorted keys. Plain C, see convolution.c. */
#include <stdint.h>

/* A line is `size` voxels whose keys are `step` apart, of which no other key lies between; its first has the key of the
 * output voxel plus the line's offset. Keys and so first voxels ascend: one walk over the keys finds all of a line.
 *
 * keys int64 [count], offsets int64 [lines] -> table int32 [lines, size, count], `count` = none. */
void find_lines(const int64_t *keys, const int64_t *offsets, int32_t *table, int64_t count, int64_t lines, int64_t size,
                int64_t step, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t line = 0; line < lines; line++) {
        int32_t *rows = table + line * size * count;
        int64_t place = 0;
        for (int64_t i = 0; i < count; i++) {
            int64_t wanted = keys[i] + offsets[line];
            while (place < count && keys[place] < wanted)
                place++;
            for (int64_t x = 0, at = place; x < size; x++, wanted += step) {
                int found = at < count && keys[at] == wanted;
                rows[x * count + i] = (int32_t)(found ? at : count);
                at += found;
            }
        }
    }
}
