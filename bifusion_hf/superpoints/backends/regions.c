/* The regions of the over-segmentation: connected parts, cuts, means, and which touch or lie near each other.
 *
 * Each function does what the function of its name in graph.py does, to the same bits. Labels are int32 [height,
 * width], negative = none; links as in pixels.c.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pixels.h"

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

/* Whether each pixel of a row is linked to its left neighbour, or the one above, and has its label. */
static void join_row(const int32_t *labels, const uint8_t *right, const uint8_t *down, int64_t y, int64_t width,
                     uint8_t *restrict to_left, uint8_t *restrict above) {
    const int32_t *row = labels + y * width;
    right += y * (width - 1);
    to_left[0] = 0;
    for (int64_t x = 1; x < width; x++) to_left[x] = right[x - 1] & (row[x] == row[x - 1]);
    if (!y) {
        memset(above, 0, width);
        return;
    }
    down += (y - 1) * width;
    for (int64_t x = 0; x < width; x++) above[x] = down[x] & (row[x] == row[x - width]);
}

/* Number of the parts; `parts` may not be `labels`. -1 without memory. */
int64_t connected_segments(const int32_t *labels, const uint8_t *right, const uint8_t *down, int64_t height,
                           int64_t width, int32_t *parts) {
    int32_t *parent = malloc((height * width ? height * width : 1) * sizeof(int32_t));
    uint8_t *joined = calloc(3 * width + 1, 1);
    if (!parent || !joined) {
        free(parent), free(joined);
        return -1;
    }
    uint8_t *to_left = joined, *before = joined + width, *above = joined + 2 * width;
    for (int64_t y = 0; y < height; y++) {
        join_row(labels, right, down, y, width, to_left, above);
        for (int64_t x = 0; x < width; x++) {
            int32_t i = (int32_t)(y * width + x);
            if (!to_left[x]) parent[i] = above[x] ? find_root(parent, (int32_t)(i - width)) : i;
            else if (!above[x] || (above[x - 1] && before[x])) parent[i] = parent[i - 1]; /* joined already */
            else parent[i] = unite(parent, i - 1, (int32_t)(i - width));
        }
        uint8_t *swapped = before;
        before = to_left, to_left = swapped;
    }
    /* A parent comes before its children, so it has its number already. */
    int64_t count = 0;
    for (int64_t i = 0; i < height * width; i++)
        parts[i] = labels[i] < 0 ? -1 : parent[i] == i ? (int32_t)count++ : parts[parent[i]];
    free(parent), free(joined);
    return count;
}

typedef struct {
    int32_t head, tail;
} pixel_pair;

/* The pairs of neighbours that count, those to the right first; of those with two labels alone where labels are given.
 * NULL without memory. */
static pixel_pair *list_pairs(const int32_t *labels, const uint8_t *right, const uint8_t *down, int64_t height,
                              int64_t width, int64_t *number) {
    int64_t capacity = 1024, found = 0;
    pixel_pair *pairs = malloc(capacity * sizeof(pixel_pair));
    uint8_t *row = malloc(width + 1);
    int good = pairs && row;
    for (int down_ones = 0; good && down_ones < 2; down_ones++) {
        int64_t rows = down_ones ? height - 1 : height, columns = down_ones ? width : width - 1;
        int64_t step = down_ones ? width : 1;
        for (int64_t y = 0; good && y < rows; y++) {
            const uint8_t *given = (down_ones ? down : right) + y * columns;
            if (labels) {
                const int32_t *heads = labels + y * width, *tails = heads + step;
                for (int64_t x = 0; x < columns; x++) row[x] = given[x] & (heads[x] != tails[x]);
                given = row;
            }
            for (int64_t x = 0; (x = next_set(given, x, columns)) < columns; x++) {
                if (found == capacity) {
                    pixel_pair *more = realloc(pairs, (capacity *= 2) * sizeof(pixel_pair));
                    good = more != NULL;
                    if (!good) break;
                    pairs = more;
                }
                int32_t head = (int32_t)(y * width + x);
                pairs[found++] = (pixel_pair){head, head + (int32_t)step};
            }
        }
    }
    free(row);
    if (!good) {
        free(pairs);
        return NULL;
    }
    *number = found;
    return pairs;
}

/* What the pixels of a segment that is being cut have for a label until they get their own. */
#define NEAR -2
#define FAR -3

/* Gives `label` to what is linked to `start` and has the label `from`; the pixels go to `queue`. Returns their number. */
static int64_t flood(int32_t *labels, const uint8_t *right, const uint8_t *down, int64_t height, int64_t width,
                     int32_t start, int32_t from, int32_t label, int32_t *queue) {
    int64_t size = 1;
    queue[0] = start, labels[start] = label;
    for (int64_t k = 0; k < size; k++) {
        int64_t i = queue[k], y = i / width, x = i % width;
        const uint8_t *link = right + i - y;
#define REACH(exists, linked, other)                                              \
    if ((exists) && labels[other] == from && (linked)) {                          \
        labels[other] = label, queue[size++] = (int32_t)(other);                  \
    }
        REACH(x > 0, link[-1], i - 1)
        REACH(x + 1 < width, link[0], i + 1)
        REACH(y > 0, down[i - width], i - width)
        REACH(y + 1 < height, down[i], i + width)
#undef REACH
    }
    return size;
}

/* The largest step between a barred pair within a segment, the depth halfway up, and a pixel of the pair. */
typedef struct {
    float step, depth;
    int32_t pixel;
} cut;

/* Cuts `labels`, each below `count` and connected, and numbers them, in place; returns how many there are then, -1 without
 * memory. */
int64_t cut_at_barred_pairs(int32_t *labels, int64_t count, const float *depth, const uint8_t *right,
                            const uint8_t *down, const uint8_t *barred_right, const uint8_t *barred_down,
                            int64_t height, int64_t width) {
    int64_t number = 0, capacity = 0;
    pixel_pair *pairs = list_pairs(NULL, barred_right, barred_down, height, width, &number);
    int32_t *members = malloc(2 * (height * width + 1) * sizeof(int32_t)), *queue = members + height * width + 1;
    cut *cuts = NULL;
    int good = pairs && members;
    while (good) {
        /* A pair that lies in two segments stays in two. */
        int64_t inner = 0;
        for (int64_t k = 0; k < number; k++) {
            int32_t label = labels[pairs[k].head];
            if (label >= 0 && label == labels[pairs[k].tail]) pairs[inner++] = pairs[k];
        }
        number = inner;
        if (!number) break;
        if (count > capacity) {
            cut *more = realloc(cuts, (capacity = 2 * count) * sizeof(cut));
            good = more != NULL;
            if (!good) break;
            cuts = more;
        }
        for (int64_t i = 0; i < count; i++) cuts[i].step = -1;
        for (int64_t k = 0; k < number; k++) {
            float one = depth[pairs[k].head], two = depth[pairs[k].tail];
            float near = one < two ? one : two, far = one < two ? two : one;
            cut *of_label = cuts + labels[pairs[k].head];
            if (far - near >= of_label->step) *of_label = (cut){far - near, (near + far) / 2, pairs[k].head};
        }
        for (int64_t label = 0, end = count; label < end; label++) {
            if (cuts[label].step < 0) continue;
            int64_t size = flood(labels, right, down, height, width, cuts[label].pixel, (int32_t)label, NEAR, members);
            for (int64_t k = 0; k < size; k++)
                if (depth[members[k]] > cuts[label].depth) labels[members[k]] = FAR;
            for (int64_t k = 0; k < size; k++) {
                int32_t side = labels[members[k]];
                if (side >= 0) continue;
                int32_t part = (int32_t)(k ? count++ : label);
                flood(labels, right, down, height, width, members[k], side, part, queue);
            }
        }
    }
    if (good) good = (count = number_segments(labels, height * width, count, labels)) >= 0;
    free(pairs), free(members), free(cuts);
    return good ? count : -1;
}

/* Camera coordinates of a pixel. */
typedef struct {
    float x, y, z;
} point;

/* Slopes of the rays, x / z of each column and then y / z of each row; `camera`: fx, fy, cx, cy. NULL without memory. */
static double *ray_slopes(const double *camera, int64_t height, int64_t width) {
    double *slopes = malloc((width + height + 1) * sizeof(double));
    for (int64_t x = 0; slopes && x < width; x++) slopes[x] = (x - camera[2]) / camera[0];
    for (int64_t y = 0; slopes && y < height; y++) slopes[width + y] = (y - camera[3]) / camera[1];
    return slopes;
}

static inline point point_of(const float *depth, const double *slopes, int64_t x, int64_t y, int64_t width) {
    double z = depth[y * width + x];
    return (point){(float)(z * slopes[x]), (float)(z * slopes[width + y]), (float)z};
}

/* Sizes [regions] and sums [channels + 3, regions] of the planes [channels, height, width] and the camera coordinates,
 * divided by `position_scale`; both zero on entry. `camera`: fx, fy, cx, cy. 0 without memory.
 *
 * Each sum is taken in the order of the pixels; threads share the rows of sums. */
int region_sums(const int32_t *labels, int64_t height, int64_t width, int64_t regions, const float *planes,
                int64_t channels, const float *depth, const double *camera, float position_scale, int64_t *sizes,
                double *sums, int threads) {
    int64_t plane = height * width;
    double *slopes = ray_slopes(camera, height, width);
    if (!slopes) return 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t part = -1; part < (channels + 1) / 2; part++) {
        if (part >= 0) {
            int64_t one = 2 * part, two = one + 1 < channels ? one + 1 : one;
            const float *first = planes + one * plane, *second = planes + two * plane;
            double *sum_one = sums + one * regions, *sum_two = sums + two * regions;
            for (int64_t i = 0; i < plane; i++) {
                if (labels[i] < 0) continue;
                sum_one[labels[i]] += first[i];
                if (one != two) sum_two[labels[i]] += second[i];
            }
            continue;
        }
        double *sum = sums + channels * regions;
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                int32_t label = labels[y * width + x];
                if (label < 0) continue;
                point here = point_of(depth, slopes, x, y, width);
                sizes[label]++;
                sum[label] += here.x / position_scale;
                sum[label + regions] += here.y / position_scale;
                sum[label + 2 * regions] += here.z / position_scale;
            }
    }
    free(slopes);
    return 1;
}

typedef struct {
    int64_t key;
    int64_t count;
    double total;
} region_pair;

/* Sorts by key, (low, high): by counting the low ones, of which each has few. NULL without memory. */
static region_pair *sorted_pairs(const region_pair *pairs, int64_t number, int64_t regions) {
    region_pair *sorted = malloc((number ? number : 1) * sizeof(region_pair));
    int64_t *ends = calloc(regions + 1, sizeof(int64_t));
    if (!sorted || !ends) {
        free(sorted), free(ends);
        return NULL;
    }
    for (int64_t k = 0; k < number; k++) ends[pairs[k].key / regions + 1]++;
    for (int64_t low = 0; low < regions; low++) ends[low + 1] += ends[low];
    for (int64_t k = 0; k < number; k++) sorted[ends[pairs[k].key / regions]++] = pairs[k];
    for (int64_t k = 1; k < number; k++) {
        region_pair moved = sorted[k];
        int64_t place = k;
        for (; place && sorted[place - 1].key > moved.key; place--) sorted[place] = sorted[place - 1];
        sorted[place] = moved;
    }
    free(ends);
    return sorted;
}

/* Pairs of `regions` regions, by (low, high); weights may be NULL. The result is freed by the caller with
 * `free_pairs`; NULL without memory. */
region_pair *region_pairs(const int32_t *labels, int64_t regions, const uint8_t *right, const uint8_t *down,
                          const float *right_weights, const float *down_weights, int64_t height, int64_t width,
                          int64_t *number) {
    int64_t between = 0, capacity = 64, found = 0;
    pixel_pair *borders = list_pairs(labels, right, down, height, width, &between);
    while (capacity < 2 * between) capacity *= 2;
    region_pair *pairs = malloc((between + 1) * sizeof(region_pair)), *sorted = NULL;
    /* Of a hash table: the place among the pairs, -1 = free. */
    int32_t *table = malloc(capacity * sizeof(int32_t));
    if (borders && pairs && table) {
        memset(table, -1, capacity * sizeof(int32_t));
        for (int64_t k = 0; k < between; k++) {
            int32_t head = labels[borders[k].head], tail = labels[borders[k].tail];
            if (head < 0 || tail < 0) continue;
            int64_t low = head < tail ? head : tail, high = head < tail ? tail : head;
            int64_t key = low * regions + high;
            uint64_t slot = ((uint64_t)key * 0x9E3779B97F4A7C15u) >> 20 & (capacity - 1);
            while (table[slot] >= 0 && pairs[table[slot]].key != key) slot = (slot + 1) & (capacity - 1);
            if (table[slot] < 0) table[slot] = (int32_t)found, pairs[found++] = (region_pair){key, 0, 0};
            region_pair *pair = pairs + table[slot];
            pair->count++;
            if (!right_weights) continue;
            int is_down = borders[k].tail - borders[k].head != 1 || width == 1;
            pair->total += is_down ? down_weights[borders[k].head]
                                   : right_weights[borders[k].head - borders[k].head / width];
        }
        sorted = sorted_pairs(pairs, found, regions ? regions : 1);
    }
    free(borders), free(pairs), free(table);
    *number = found;
    return sorted;
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

typedef struct {
    near_pair *pairs;
    int64_t number, capacity;
} near_list;

/* Room for more pairs; 0 without memory. */
static int make_room(near_list *list, int64_t more) {
    if (list->pairs && list->number + more <= list->capacity) return 1;
    int64_t capacity = list->capacity ? list->capacity : 1024;
    while (capacity < list->number + more) capacity *= 2;
    near_pair *moved = realloc(list->pairs, capacity * sizeof(near_pair));
    if (!moved) return 0;
    list->pairs = moved, list->capacity = capacity;
    return 1;
}

/* A frame, and what one thread notes about the pixel at hand: squares of distances along a row and which of them count,
 * the nearest of each region so far, which regions those are, and whose pixel an entry is of. */
typedef struct {
    const int32_t *labels;
    const float *depth;
    const double *camera, *slopes;
    double radius;
    int64_t height, width;
    double *squared, *nearest;
    int32_t *seen, *touched;
    uint8_t *close;
} near_search;

/* The regions near a pixel, as pairs with its own. 0 without memory. */
static int search_near(near_search *at, int64_t pixel, int64_t regions, near_list *list) {
    int32_t label = at->labels[pixel];
    int64_t x = pixel % at->width, y = pixel / at->width, count = 0;
    point here = point_of(at->depth, at->slopes, x, y, at->width);
    double reach = at->radius * here.z, limit = reach * reach;
    /* A point that near lies no farther away in the image than this, also where it is in front. */
    double spread = at->radius / (1 - at->radius);
    int64_t across = (int64_t)ceil(spread * (at->camera[0] + fabs(x - at->camera[2])));
    int64_t along = (int64_t)ceil(spread * (at->camera[1] + fabs(y - at->camera[3])));
    int64_t left = x > across ? x - across : 0, right = x + across < at->width ? x + across : at->width - 1;
    int64_t top = y > along ? y - along : 0, bottom = y + along < at->height ? y + along : at->height - 1;
    int64_t columns = right - left + 1;
    double *squared = at->squared;
    uint8_t *close = at->close;
    for (int64_t row = top; row <= bottom; row++) {
        const int32_t *others = at->labels + row * at->width + left;
        const float *depths = at->depth + row * at->width + left;
        const double *slopes = at->slopes + left;
        double y_slope = at->slopes[at->width + row];
        /* All are measured at once, and then the few that count are looked for. */
        for (int64_t k = 0; k < columns; k++) {
            double z = depths[k];
            double dx = (double)(float)(z * slopes[k]) - here.x;
            double dy = (double)(float)(z * y_slope) - here.y, dz = z - here.z;
            squared[k] = dx * dx + dy * dy + dz * dz;
        }
        for (int64_t k = 0; k < columns; k++)
            close[k] = (squared[k] <= limit) & (others[k] >= 0) & (others[k] != label);
        for (int64_t k = 0; (k = next_set(close, k, columns)) < columns; k++) {
            int32_t other = others[k];
            if (at->seen[other] != (int32_t)pixel) {
                at->seen[other] = (int32_t)pixel, at->nearest[other] = squared[k], at->touched[count++] = other;
            } else if (squared[k] < at->nearest[other]) {
                at->nearest[other] = squared[k];
            }
        }
    }
    if (!make_room(list, count)) return 0;
    for (int64_t k = 0; k < count; k++) {
        int32_t other = at->touched[k];
        int64_t low = label < other ? label : other, high = label < other ? other : label;
        list->pairs[list->number++] = (near_pair){low * regions + high, at->nearest[other]};
    }
    return 1;
}

/* For pixels of small regions the regions within `radius` times their depth in space: key low * regions + high and
 * squared distance, sorted, several for a pair; freed by the caller with `free_near`. NULL without memory. */
near_pair *nearby_pairs(const int32_t *labels, int64_t regions, const uint8_t *small, const float *depth,
                        double radius, const double *camera, int64_t height, int64_t width, int64_t *number,
                        int threads) {
    near_list all = {0};
    int64_t asking = 0, pixels = height * width;
    double *slopes = ray_slopes(camera, height, width);
    int32_t *members = malloc((pixels + 1) * sizeof(int32_t));
    int good = make_room(&all, 1) && slopes && members;
    for (int64_t i = 0; good && i < pixels; i++)
        if (labels[i] >= 0 && small[labels[i]]) members[asking++] = (int32_t)i;
#pragma omp parallel num_threads(threads) reduction(& : good)
    {
        near_list own = {0};
        near_search at = {labels, depth, camera, slopes, radius, height, width};
        at.squared = malloc((width + 1) * sizeof(double)), at.close = malloc(width + 1);
        at.nearest = malloc((regions + 1) * sizeof(double));
        at.seen = malloc((regions + 1) * sizeof(int32_t)), at.touched = malloc((regions + 1) * sizeof(int32_t));
        good &= at.squared && at.close && at.nearest && at.seen && at.touched && slopes && members;
        if (at.seen) memset(at.seen, -1, (regions + 1) * sizeof(int32_t));
#pragma omp for schedule(dynamic, 16)
        for (int64_t k = 0; k < asking; k++) good = good && search_near(&at, members[k], regions, &own);
#pragma omp critical
        {
            good = good && make_room(&all, own.number);
            if (good && own.number) memcpy(all.pairs + all.number, own.pairs, own.number * sizeof(near_pair));
            if (good) all.number += own.number;
        }
        free(at.squared), free(at.close), free(at.nearest), free(at.seen), free(at.touched), free(own.pairs);
    }
    free(slopes), free(members);
    if (!good) {
        free(all.pairs);
        return NULL;
    }
    /* Sorting leaves nothing of the order in which threads have found them. */
    qsort(all.pairs, all.number, sizeof(near_pair), by_key_and_distance);
    *number = all.number;
    return all.pairs;
}

void free_near(near_pair *pairs) { free(pairs); }
