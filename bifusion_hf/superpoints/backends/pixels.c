/* The per-pixel half of the over-segmentation: colour, depth edges, normals, contrast, and the watershed.
 *
 * Each function does what the function of its name in pixels.py or geometry.py does. Images of several channels are
 * planes, [channels, height, width]; a link array of right neighbours has width - 1 columns, of lower ones height - 1
 * rows. Rows are shared among threads, and no sum depends on how: results have the same bits for any number of them.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pixels.h"

#define INLINE static inline __attribute__((always_inline))
/* Neighbouring pixels, as many as the processor computes at once. */
#if defined(__AVX512F__)
#define COLUMNS 16
#elif defined(__AVX__)
#define COLUMNS 8
#else
#define COLUMNS 4
#endif
typedef float columns __attribute__((vector_size(4 * COLUMNS), aligned(4)));
typedef uint32_t units __attribute__((vector_size(4 * COLUMNS), aligned(4)));

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Cube roots of positive numbers to float32's precision: guesses from the bits, then Halley's iteration. */
INLINE columns cube_roots(columns x) {
    columns y = (columns)((units)x / 3 + 709921077u);
    for (int step = 0; step < 2; step++) {
        columns cube = y * y * y;
        y *= (cube + 2 * x) / (2 * cube + x);
    }
    return y;
}

INLINE columns lab_roots(columns t) {
    columns root = cube_roots(t), line = 7.787f * t + (float)(16.0 / 116.0);
    units large = (units)(t > 0.008856f);
    return (columns)(((units)root & large) | ((units)line & ~large));
}

/* CIE Lab planes of RGB pixels. `linear`: light of each of 256 levels; `to_xyz`: [3, 3], its rows sum to 1. */
void lab_planes(const uint8_t *image, int64_t height, int64_t width, const float *linear, const float *to_xyz,
                float *lab, int threads) {
    int64_t plane = height * width;
    /* What the compiler knows to be no part of the planes it keeps in registers. */
    float m[9];
    memcpy(m, to_xyz, sizeof m);
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < height; row++) {
        const uint8_t *pixel = image + 3 * row * width;
        float *l = lab + row * width, *a = l + plane, *b = a + plane;
        for (int64_t x = 0; x < width; x++) {
            l[x] = linear[pixel[3 * x]];
            a[x] = linear[pixel[3 * x + 1]];
            b[x] = linear[pixel[3 * x + 2]];
        }
        for (int64_t x = 0; x < width; x += COLUMNS) {
            /* The last ones of a row may be fewer. */
            int64_t bytes = (width - x < COLUMNS ? width - x : COLUMNS) * sizeof(float);
            columns red = {0}, green = {0}, blue = {0};
            memcpy(&red, l + x, bytes), memcpy(&green, a + x, bytes), memcpy(&blue, b + x, bytes);
            columns first = lab_roots(m[0] * red + m[1] * green + m[2] * blue);
            columns second = lab_roots(m[3] * red + m[4] * green + m[5] * blue);
            columns third = lab_roots(m[6] * red + m[7] * green + m[8] * blue);
            red = 116 * second - 16, green = 500 * (first - second), blue = 200 * (second - third);
            memcpy(l + x, &red, bytes), memcpy(a + x, &green, bytes), memcpy(b + x, &blue, bytes);
        }
    }
}

/* The place that an index beyond the border is mirrored to, the border's pixel twice: b a | a b c | c b. */
INLINE int64_t mirrored(int64_t index, int64_t size) {
    int64_t period = 2 * size, place = ((index % period) + period) % period;
    return place < size ? place : period - 1 - place;
}

/* Convolves planes [channels, height, width] with `taps` [2 radius + 1] down and across. */
void blur_planes(const float *planes, int64_t channels, int64_t height, int64_t width, const float *taps,
                 int64_t radius, float *blurred, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *padded = malloc((width + 2 * radius) * sizeof(float));
        float *line = padded + radius;
#pragma omp for
        for (int64_t index = 0; index < channels * height; index++) {
            int64_t row = index % height;
            const float *plane = planes + (index - row) * width;
            memset(line, 0, width * sizeof(float));
            for (int64_t k = -radius; k <= radius; k++) {
                const float *source = plane + mirrored(row + k, height) * width;
                float tap = taps[k + radius];
                for (int64_t x = 0; x < width; x++) line[x] += tap * source[x];
            }
            for (int64_t k = 1; k <= radius; k++) {
                line[-k] = line[mirrored(-k, width)];
                line[width - 1 + k] = line[mirrored(width - 1 + k, width)];
            }
            float *out = blurred + index * width;
            memset(out, 0, width * sizeof(float));
            for (int64_t k = -radius; k <= radius; k++) {
                float tap = taps[k + radius];
                for (int64_t x = 0; x < width; x++) out[x] += tap * line[x + k];
            }
        }
        free(padded);
    }
}

/* Whether the step from `here` to `next` is an edge, between the steps before and after it; 0 = no measurement. */
INLINE uint8_t is_edge(float before, float here, float next, float after, const float *threshold) {
    float step = next - here;
    float sign = step > 0 ? 1.0f : step < 0 ? -1.0f : 0.0f;
    float slope_before = (before > 0) & (here > 0) ? (here - before) * sign : 0;
    float slope_after = (after > 0) & (next > 0) ? (after - next) * sign : 0;
    float slope = slope_before < slope_after ? slope_before : slope_after;
    slope = slope > 0 ? slope : 0;
    float near = here < next ? here : next;
    float limit = threshold[0] + threshold[1] * near + threshold[2] * (near * near);
    return (here > 0) & (next > 0) & (fabsf(step) - slope > limit);
}

INLINE void find_edges(const float *before, const float *here, const float *next, const float *after, int64_t count,
                       const float *threshold, uint8_t *restrict edges) {
    for (int64_t i = 0; i < count; i++) edges[i] = is_edge(before[i], here[i], next[i], after[i], threshold);
}

/* Takes edges away whose chain, with the borders of holes that it touches, has fewer than `least` cracks and corners.
 *
 * A crack lies between two neighbours, a corner between four pixels, where the cracks of a chain meet. */
static int drop_short_chains(const float *depth, int64_t height, int64_t width, int64_t least, uint8_t *right,
                             uint8_t *down) {
    int64_t first_down = height * (width - 1), cracks = first_down + (height - 1) * width;
    /* Of active cracks alone: most pixels have none, and what is not written costs nothing. */
    int32_t *parent = malloc(cracks * sizeof(int32_t)), *sizes = malloc(cracks * sizeof(int32_t));
    uint8_t *active = malloc(cracks), *corners = malloc(width);
    if (!parent || !sizes || !active || !corners) {
        free(parent), free(sizes), free(active), free(corners);
        return 0;
    }
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x + 1 < width; x++) {
            const float *here = depth + y * width + x;
            active[y * (width - 1) + x] = right[y * (width - 1) + x] | ((here[0] > 0) != (here[1] > 0));
        }
    for (int64_t i = 0; i < (height - 1) * width; i++)
        active[first_down + i] = down[i] | ((depth[i] > 0) != (depth[i + width] > 0));
    for (int64_t i = 0; (i = next_set(active, i, cracks)) < cracks; i++) parent[i] = (int32_t)i, sizes[i] = 0;
    for (int64_t y = 0; y + 1 < height; y++) {
        const uint8_t *above = active + y * (width - 1), *below = above + width - 1;
        const uint8_t *left = active + first_down + y * width;
        for (int64_t x = 0; x + 1 < width; x++) corners[x] = above[x] | below[x] | left[x] | left[x + 1];
        for (int64_t x = 0; (x = next_set(corners, x, width - 1)) < width - 1; x++) {
            int32_t around[4] = {(int32_t)(above + x - active), (int32_t)(below + x - active),
                                 (int32_t)(left + x - active), (int32_t)(left + x + 1 - active)};
            int32_t known = -1;
            for (int k = 0; k < 4; k++)
                if (active[around[k]]) known = known < 0 ? around[k] : unite(parent, known, around[k]);
            sizes[known]++; /* the corner; its chain's root gathers it below */
        }
    }
    for (int64_t i = cracks - 1; i >= 0; i--) {
        if (!active[i]) continue;
        sizes[i]++;
        /* A parent has a smaller number, so it is still to come. */
        if (parent[i] != i) sizes[parent[i]] += sizes[i];
    }
    for (int64_t i = 0; i < first_down; i++)
        if (right[i]) right[i] = sizes[find_root(parent, (int32_t)i)] >= least;
    for (int64_t i = first_down; i < cracks; i++)
        if (down[i - first_down]) down[i - first_down] = sizes[find_root(parent, (int32_t)i)] >= least;
    free(parent), free(sizes), free(active), free(corners);
    return 1;
}

/* Links of `surface_links`; 0 where memory runs out. `threshold`: base, slope, quantisation of an edge. */
int surface_links(const float *depth, int64_t height, int64_t width, const float *threshold, int64_t least,
                  uint8_t *right, uint8_t *down, int threads) {
    /* Without measurements, as is everything beyond the border. */
    float *nothing = calloc(width, sizeof(float));
    if (!nothing) return 0;
#pragma omp parallel num_threads(threads)
    {
        float *padded = calloc(width + 3, sizeof(float));
#pragma omp for
        for (int64_t y = 0; y < height; y++) {
            const float *row = depth + y * width;
            memcpy(padded + 1, row, width * sizeof(float));
            find_edges(padded, padded + 1, padded + 2, padded + 3, width - 1, threshold, right + y * (width - 1));
            if (y + 1 == height) continue;
            find_edges(y ? row - width : nothing, row, row + width, y + 2 < height ? row + 2 * width : nothing, width,
                       threshold, down + y * width);
        }
        free(padded);
    }
    free(nothing);
    if (!drop_short_chains(depth, height, width, least, right, down)) return 0;
#pragma omp parallel for num_threads(threads)
    for (int64_t y = 0; y < height; y++) {
        const float *row = depth + y * width;
        uint8_t *out = right + y * (width - 1);
        for (int64_t x = 0; x + 1 < width; x++) out[x] = !out[x] & (row[x] > 0) & (row[x + 1] > 0);
        if (y + 1 == height) continue;
        out = down + y * width;
        for (int64_t x = 0; x < width; x++) out[x] = !out[x] & (row[x] > 0) & (row[x + width] > 0);
    }
    return 1;
}

/* Sums of `count` rows that lie `stride` apart, row after row; the sums of a few columns stay in registers. */
INLINE void add_rows(const float *rows, int64_t count, int64_t stride, int64_t width, float *restrict sums) {
    int64_t x = 0;
    for (; x + 4 * COLUMNS <= width; x += 4 * COLUMNS) {
        columns sum[4] = {{0}};
        for (int64_t k = 0; k < count; k++)
            for (int i = 0; i < 4; i++) sum[i] += *(const columns *)(rows + k * stride + x + i * COLUMNS);
        memcpy(sums + x, sum, sizeof sum);
    }
    for (; x < width; x++) {
        float sum = 0;
        for (int64_t k = 0; k < count; k++) sum += rows[k * stride + x];
        sums[x] = sum;
    }
}

/* Means over a window around each pixel; beyond the border there is 0. */
static void box_mean(const float *values, int64_t height, int64_t width, int64_t window, float *means,
                     int threads) {
    int64_t half = window / 2;
    float share = 1.0f / window;
#pragma omp parallel num_threads(threads)
    {
        float *padded = calloc(width + 2 * half, sizeof(float));
        float *line = padded + half;
#pragma omp for
        for (int64_t y = 0; y < height; y++) {
            int64_t first = y > half ? y - half : 0, last = y + half < height ? y + half : height - 1;
            add_rows(values + first * width, last - first + 1, width, width, line);
            float *out = means + y * width;
            add_rows(padded, window, 1, width, out);
            for (int64_t x = 0; x < width; x++) out[x] *= share * share;
        }
        free(padded);
    }
}

/* Mean difference to the right, or lower, neighbour over the links around each pixel; `scratch` has three images. */
static void mean_step(const float *inverse, const uint8_t *links, int64_t height, int64_t width, int is_down,
                      int64_t window, float *scratch, float *result, int threads) {
    int64_t plane = height * width, stride = is_down ? width : 1;
    int64_t columns = is_down ? width : width - 1, rows = is_down ? height - 1 : height;
    float *step = scratch, *weight = scratch + plane, *other = scratch + 2 * plane;
    memset(step, 0, 2 * plane * sizeof(float));
#pragma omp parallel for num_threads(threads)
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < columns; x++) {
            int64_t i = y * width + x;
            float linked = links[y * columns + x];
            step[i] = linked * (inverse[i + stride] - inverse[i]);
            weight[i] = linked;
        }
    box_mean(step, height, width, window, other, threads);
    box_mean(other, height, width, window, step, threads);
    box_mean(weight, height, width, window, other, threads);
    box_mean(other, height, width, window, weight, threads);
    float least = 0.5f / ((float)window * window * window * window);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < plane; i++) result[i] = weight[i] > least ? step[i] / weight[i] : 0;
}

/* Planes of normals of length `factor`. `camera`: fx, fy, cx, cy. 0 where memory runs out. */
int normal_planes(const float *depth, const uint8_t *right, const uint8_t *down, int64_t height, int64_t width,
                     const float *camera, int64_t window, float factor, float *normals, int threads) {
    int64_t plane = height * width;
    float *scratch = malloc(6 * plane * sizeof(float));
    if (!scratch) return 0;
    float *inverse = scratch + 3 * plane, *along_x = inverse + plane, *along_y = along_x + plane;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < plane; i++) inverse[i] = depth[i] > 0 ? 1 / depth[i] : 0;
    mean_step(inverse, right, height, width, 0, window, scratch, along_x, threads);
    mean_step(inverse, down, height, width, 1, window, scratch, along_y, threads);
#pragma omp parallel for num_threads(threads)
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            int64_t i = y * width + x;
            float a = along_x[i] * camera[0], b = along_y[i] * camera[1];
            float c = inverse[i] - along_x[i] * (x - camera[2]) - along_y[i] * (y - camera[3]);
            float length = sqrtf(a * a + b * b + c * c);
            int known = depth[i] > 0 && length > 0;
            normals[i] = known ? factor * (-a / length) : 0;
            normals[i + plane] = known ? factor * (-b / length) : 0;
            normals[i + 2 * plane] = known ? factor * (-c / length) : 0;
        }
    free(scratch);
    return 1;
}

/* Raises what is lower than a pair's value, which is infinite without a link. */
INLINE void take_largest(const uint8_t *links, const float *values, int64_t count, float *restrict largest) {
    for (int64_t i = 0; i < count; i++) {
        float value = links[i] ? values[i] : INFINITY;
        largest[i] = value > largest[i] ? value : largest[i];
    }
}

/* Squared differences to the right and lower neighbour, and each pixel's level: the upper half of the bits of its
 * largest difference, infinite beside a pair without a link. */
void link_contrast(const float *features, int64_t channels, int64_t height, int64_t width, const uint8_t *right_links,
                   const uint8_t *down_links, float *right, float *down, uint16_t *levels, int threads) {
    int64_t plane = height * width;
#pragma omp parallel for num_threads(threads)
    for (int64_t y = 0; y < height; y++) {
        float *out = right + y * (width - 1), *below = down + y * width;
        memset(out, 0, (width - 1) * sizeof(float));
        if (y + 1 < height) memset(below, 0, width * sizeof(float));
        for (int64_t channel = 0; channel < channels; channel++) {
            const float *row = features + channel * plane + y * width;
            for (int64_t x = 0; x + 1 < width; x++) out[x] += (row[x + 1] - row[x]) * (row[x + 1] - row[x]);
            if (y + 1 == height) continue;
            for (int64_t x = 0; x < width; x++) below[x] += (row[x + width] - row[x]) * (row[x + width] - row[x]);
        }
    }
#pragma omp parallel num_threads(threads)
    {
        float *largest = malloc(width * sizeof(float));
#pragma omp for
        for (int64_t y = 0; y < height; y++) {
            int64_t to_right = y * (width - 1), below = y * width;
            memset(largest, 0, width * sizeof(float));
            take_largest(right_links + to_right, right + to_right, width - 1, largest);
            take_largest(right_links + to_right, right + to_right, width - 1, largest + 1);
            if (y + 1 < height) take_largest(down_links + below, down + below, width, largest);
            if (y > 0) take_largest(down_links + below - width, down + below - width, width, largest);
            for (int64_t x = 0; x < width; x++) levels[below + x] = bits_of(largest[x]) >> 16;
        }
        free(largest);
    }
}

/* A pixel of the flood: free with its level, or reached with its label and the one that waits behind it. */
typedef struct {
    int32_t label;
    union {
        int32_t level, next;
    };
} flooded;

/* Pixels wait in a queue for each level; a bit for each level that has one tells where. */
#define LEVELS 65536
typedef struct {
    int32_t first[LEVELS], last[LEVELS];
    uint64_t used[LEVELS / 64];
} queues;

INLINE void wait_in(queues *queue, flooded *pixels, int64_t pixel, int32_t level) {
    uint64_t bit = (uint64_t)1 << (level % 64);
    if (queue->used[level / 64] & bit) {
        pixels[queue->last[level]].next = (int32_t)pixel;
    } else {
        queue->first[level] = (int32_t)pixel;
        queue->used[level / 64] |= bit;
    }
    queue->last[level] = (int32_t)pixel;
    pixels[pixel].next = -1;
}

INLINE void reach(queues *queue, flooded *pixels, int64_t pixel, int32_t label, int32_t level) {
    if (pixels[pixel].label) return;
    pixels[pixel].label = label;
    wait_in(queue, pixels, pixel, pixels[pixel].level > level ? pixels[pixel].level : level);
}

/* Floods from seeds, the lowest level first, and of one level what was reached first; what lies lower than the way to
 * it has the level of the way. `labels`: the seeds, 0 = none, on entry, and every pixel of the mask that a seed reaches
 * on return. 0 where memory runs out. */
int watershed(const uint16_t *levels, const uint8_t *mask, int64_t height, int64_t width, int32_t *labels) {
    /* With a border that nothing floods, as nothing floods what is not in the mask. */
    int64_t stride = width + 2, cells = (height + 2) * stride;
    queues *queue = calloc(1, sizeof(queues));
    flooded *pixels = malloc(cells * sizeof(flooded));
    if (!queue || !pixels) {
        free(queue), free(pixels);
        return 0;
    }
    for (int64_t i = 0; i < cells; i++) pixels[i].label = -1;
    /* Seeds come before all else: they wait on the lowest level until each has had its turn. */
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            int64_t i = y * width + x, place = (y + 1) * stride + x + 1;
            if (!mask[i]) continue;
            pixels[place].label = labels[i], pixels[place].level = levels[i];
            if (labels[i]) wait_in(queue, pixels, place, 0);
        }
    /* What is reached lies on the level at hand or above: queues behind it stay empty. */
    for (int64_t word = 0; word < LEVELS / 64; word++)
        while (queue->used[word]) {
            int32_t level = (int32_t)(64 * word + __builtin_ctzll(queue->used[word]));
            for (int64_t pixel = queue->first[level]; pixel >= 0; pixel = pixels[pixel].next) {
                int32_t label = pixels[pixel].label;
                /* The next one in the queue may be anywhere; its memory is asked for in time. */
                int64_t next = pixels[pixel].next > 0 ? pixels[pixel].next : pixel;
                __builtin_prefetch(pixels + next - stride), __builtin_prefetch(pixels + next + stride);
                reach(queue, pixels, pixel - stride, label, level);
                reach(queue, pixels, pixel - 1, label, level);
                reach(queue, pixels, pixel + 1, label, level);
                reach(queue, pixels, pixel + stride, label, level);
            }
            queue->used[word] &= queue->used[word] - 1;
        }
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            int32_t label = pixels[(y + 1) * stride + x + 1].label;
            labels[y * width + x] = label > 0 ? label : 0;
        }
    free(queue), free(pixels);
    return 1;
}
