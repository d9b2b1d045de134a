/* The regions of the over-segmentation: connected parts, cuts, means, and which touch or lie near each other.
 *
 * Each function does what the function of its name in graph.py does, to the same bits. Labels are int32 [height,
 * width], negative = none; links as in pixels.c.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int32_t find_root(int32_t *parent, int32_t item) {
    while (parent[item] != item) {
        parent[item] = parent[parent[item]];
        item = parent[item];
    }
    return item;
}

/* Numbers labels below `bound` in the order of their first pixel; returns how many there are, -1 without memory. */
int64_t number_segments(const int32_t *labels, int64_t pixels, int64_t bound, int32_t *numbered) {
    int32_t *numbers = malloc((bound ? bound : 1) * sizeof(int32_t));
    if (!numbers) return -1;
    for (int64_t i = 0; i < bound; i++) numbers[i] = -1;
    int64_t count = 0;
    for (int64_t i = 0; i < pixels; i++) {
        int32_t label = labels[i];
        if (label >= 0 && numbers[label] < 0) numbers[label] = (int32_t)count++;
        numbered[i] = label < 0 ? -1 : numbers[label];
    }
    free(numbers);
    return count;
}

/* Number of the parts; `parts` may not be `labels`. -1 without memory. */
int64_t connected_segments(const int32_t *labels, const uint8_t *right, const uint8_t *down, int64_t height,
                           int64_t width, int32_t *parts) {
    int32_t *parent = malloc((height * width ? height * width : 1) * sizeof(int32_t));
    if (!parent) return -1;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            int32_t i = (int32_t)(y * width + x);
            int to_left = x && right[y * (width - 1) + x - 1] && labels[i - 1] == labels[i];
            int above = y && down[i - width] && labels[i - width] == labels[i];
            parent[i] = i;
            if (above) parent[i] = find_root(parent, (int32_t)(i - width));
            if (to_left) {
                int32_t left = find_root(parent, i - 1), root = parent[i];
                if (left < root) parent[root] = left, parent[i] = left;
                else parent[left] = root;
            }
        }
    /* A parent comes before its children, so it has its number already. */
    int64_t count = 0;
    for (int64_t i = 0; i < height * width; i++)
        parts[i] = labels[i] < 0 ? -1 : parent[i] == i ? (int32_t)count++ : parts[parent[i]];
    free(parent);
    return count;
}

typedef struct {
    int32_t head, tail;
} pixel_pair;

static pixel_pair *list_pairs(const uint8_t *right, const uint8_t *down, int64_t height, int64_t width,
                              int64_t *count) {
    int64_t number = 0;
    for (int64_t i = 0; i < height * (width - 1); i++) number += right[i];
    for (int64_t i = 0; i < (height - 1) * width; i++) number += down[i];
    pixel_pair *pairs = malloc((number ? number : 1) * sizeof(pixel_pair));
    if (!pairs) return NULL;
    pixel_pair *next = pairs;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x + 1 < width; x++)
            if (right[y * (width - 1) + x])
                *next++ = (pixel_pair){(int32_t)(y * width + x), (int32_t)(y * width + x + 1)};
    for (int64_t i = 0; i < (height - 1) * width; i++)
        if (down[i]) *next++ = (pixel_pair){(int32_t)i, (int32_t)(i + width)};
    *count = number;
    return pairs;
}

/* Cuts `labels`, numbered below `count`, in place; returns the new count, -1 without memory. */
int64_t cut_at_barred_pairs(int32_t *labels, int64_t count, const float *depth, const uint8_t *right,
                            const uint8_t *down, const uint8_t *barred_right, const uint8_t *barred_down,
                            int64_t height, int64_t width) {
    int64_t pixels = height * width, number = 0;
    pixel_pair *pairs = list_pairs(barred_right, barred_down, height, width, &number);
    int32_t *sides = malloc((pixels ? pixels : 1) * sizeof(int32_t));
    float *largest = NULL, *cut = NULL;
    if (!pairs || !sides) count = -1;
    while (count > 0) {
        float *more = realloc(largest, count * sizeof(float));
        if (more) largest = more;
        float *places = realloc(cut, count * sizeof(float));
        if (places) cut = places;
        if (!more || !places) {
            count = -1;
            break;
        }
        for (int64_t i = 0; i < count; i++) largest[i] = -1, cut[i] = INFINITY;
        int found = 0;
        for (int64_t k = 0; k < number; k++) {
            int32_t label = labels[pairs[k].head];
            if (label < 0 || label != labels[pairs[k].tail]) continue;
            float one = depth[pairs[k].head], two = depth[pairs[k].tail];
            float near = one < two ? one : two, far = one < two ? two : one;
            found = 1;
            if (far - near >= largest[label]) largest[label] = far - near, cut[label] = (near + far) / 2;
        }
        if (!found) break;
        for (int64_t i = 0; i < pixels; i++)
            sides[i] = labels[i] >= 0 && depth[i] > cut[labels[i]] ? labels[i] + (int32_t)count : labels[i];
        count = connected_segments(sides, right, down, height, width, labels);
    }
    free(pairs), free(sides), free(largest), free(cut);
    return count;
}

/* Camera coordinates of a pixel; `camera`: fx, fy, cx, cy. */
typedef struct {
    float x, y, z;
} point;

static inline point point_of(const float *depth, const double *camera, int64_t x, int64_t y, int64_t width) {
    double z = depth[y * width + x];
    return (point){(float)(z * ((x - camera[2]) / camera[0])), (float)(z * ((y - camera[3]) / camera[1])), (float)z};
}

/* Sizes [regions] and sums [regions, channels + 3] of the planes [channels, height, width] and the camera coordinates,
 * divided by `position_scale`; both zero on entry. `camera`: fx, fy, cx, cy. */
void region_sums(const int32_t *labels, int64_t height, int64_t width, const float *planes, int64_t channels,
                 const float *depth, const double *camera, float position_scale, int64_t *sizes, double *sums) {
    int64_t plane = height * width, columns = channels + 3;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            int64_t i = y * width + x;
            if (labels[i] < 0) continue;
            double *sum = sums + labels[i] * columns;
            sizes[labels[i]]++;
            for (int64_t channel = 0; channel < channels; channel++) sum[channel] += planes[channel * plane + i];
            point here = point_of(depth, camera, x, y, width);
            sum[channels] += here.x / position_scale;
            sum[channels + 1] += here.y / position_scale;
            sum[channels + 2] += here.z / position_scale;
        }
}

typedef struct {
    int64_t key;
    int64_t count;
    double total;
} region_pair;

static int by_key(const void *one, const void *two) {
    int64_t first = ((const region_pair *)one)->key, second = ((const region_pair *)two)->key;
    return (first > second) - (first < second);
}

static int64_t count_pairs_between(const int32_t *labels, const uint8_t *right, const uint8_t *down, int64_t height,
                                   int64_t width) {
    int64_t number = 0;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x + 1 < width; x++)
            number += right[y * (width - 1) + x] & (labels[y * width + x] != labels[y * width + x + 1]);
    for (int64_t i = 0; i < (height - 1) * width; i++) number += down[i] & (labels[i] != labels[i + width]);
    return number;
}

/* Pairs of `regions` regions, by (low, high); weights may be NULL. The result is freed by the caller with
 * `free_pairs`; NULL without memory. */
region_pair *region_pairs(const int32_t *labels, int64_t regions, const uint8_t *right, const uint8_t *down,
                          const float *right_weights, const float *down_weights, int64_t height, int64_t width,
                          int64_t *number) {
    int64_t capacity = 64, most = count_pairs_between(labels, right, down, height, width);
    while (capacity < 2 * most) capacity *= 2;
    region_pair *table = malloc(capacity * sizeof(region_pair));
    if (!table) return NULL;
    for (int64_t i = 0; i < capacity; i++) table[i].key = -1;
    for (int direction = 0; direction < 2; direction++) {
        const uint8_t *links = direction ? down : right;
        const float *weights = direction ? down_weights : right_weights;
        int64_t rows = direction ? height - 1 : height, columns = direction ? width : width - 1;
        int64_t step = direction ? width : 1;
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < columns; x++) {
                int64_t place = y * columns + x;
                if (!links[place]) continue;
                int32_t head = labels[y * width + x], tail = labels[y * width + x + step];
                if (head == tail || head < 0 || tail < 0) continue;
                int64_t low = head < tail ? head : tail, high = head < tail ? tail : head;
                int64_t key = low * regions + high;
                uint64_t slot = ((uint64_t)key * 0x9E3779B97F4A7C15u) >> 20 & (capacity - 1);
                while (table[slot].key != key && table[slot].key >= 0) slot = (slot + 1) & (capacity - 1);
                if (table[slot].key < 0) table[slot] = (region_pair){key, 0, 0};
                table[slot].count++;
                if (weights) table[slot].total += weights[place];
            }
    }
    int64_t found = 0;
    for (int64_t i = 0; i < capacity; i++)
        if (table[i].key >= 0) table[found++] = table[i];
    qsort(table, found, sizeof(region_pair), by_key);
    *number = found;
    return table;
}

void free_pairs(region_pair *pairs) { free(pairs); }

typedef struct {
    int64_t key;
    double squared;
} near_pair;

static int by_key_and_distance(const void *one, const void *two) {
    const near_pair *first = one, *second = two;
    if (first->key != second->key) return (first->key > second->key) - (first->key < second->key);
    return (first->squared > second->squared) - (first->squared < second->squared);
}

/* For pixels of small regions the regions within `radius` times their depth in space: key low * regions + high and
 * squared distance, sorted, several for a pair; freed by the caller with `free_near`. NULL without memory. */
near_pair *nearby_pairs(const int32_t *labels, int64_t regions, const uint8_t *small, const float *depth, double radius, const double *camera, int64_t height, int64_t width, int64_t *number) {
    int64_t capacity = 1024, found = 0;
    near_pair *pairs = malloc(capacity * sizeof(near_pair));
    /* The nearest so far of each region, for the pixel at hand; `seen` says whose entries are of it. */
    double *nearest = malloc((regions ? regions : 1) * sizeof(double));
    int32_t *seen = malloc((regions ? regions : 1) * sizeof(int32_t)), *touched = malloc((regions ? regions : 1) * sizeof(int32_t));
    int good = pairs && nearest && seen && touched;
    if (good) memset(seen, -1, regions * sizeof(int32_t));
    for (int64_t i = 0; good && i < height * width; i++) {
        int32_t label = labels[i];
        if (label < 0 || !small[label]) continue;
        int64_t x = i % width, y = i / width, count = 0;
        point here = point_of(depth, camera, x, y, width);
        double reach = radius * here.z, limit = reach * reach;
        /* A point that near lies no farther away in the image than this, also where it is in front. */
        double spread = radius / (1 - radius);
        int64_t across = (int64_t)ceil(spread * (camera[0] + fabs(x - camera[2])));
        int64_t along = (int64_t)ceil(spread * (camera[1] + fabs(y - camera[3])));
        int64_t left = x > across ? x - across : 0, last = x + across < width ? x + across : width - 1;
        int64_t top = y > along ? y - along : 0, bottom = y + along < height ? y + along : height - 1;
        for (int64_t row = top; row <= bottom; row++)
            for (int64_t column = left; column <= last; column++) {
                int32_t other = labels[row * width + column];
                if (other < 0 || other == label) continue;
                point there = point_of(depth, camera, column, row, width);
                double dx = (double)there.x - here.x, dy = (double)there.y - here.y, dz = (double)there.z - here.z;
                double squared = dx * dx + dy * dy + dz * dz;
                if (squared > limit) continue;
                if (seen[other] != (int32_t)i) seen[other] = (int32_t)i, nearest[other] = squared, touched[count++] = other;
                else if (squared < nearest[other]) nearest[other] = squared;
            }
        if (found + count > capacity) {
            while (found + count > capacity) capacity *= 2;
            near_pair *more = realloc(pairs, capacity * sizeof(near_pair));
            if (!more) good = 0;
            else pairs = more;
        }
        for (int64_t k = 0; good && k < count; k++) {
            int64_t low = label < touched[k] ? label : touched[k], high = label < touched[k] ? touched[k] : label;
            pairs[found++] = (near_pair){low * regions + high, nearest[touched[k]]};
        }
    }
    free(nearest), free(seen), free(touched);
    if (!good) {
        free(pairs);
        return NULL;
    }
    qsort(pairs, found, sizeof(near_pair), by_key_and_distance);
    *number = found;
    return pairs;
}

void free_near(near_pair *pairs) { free(pairs); }
