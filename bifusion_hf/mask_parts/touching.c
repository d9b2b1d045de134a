/* Which points touch, and the parts of masks that they connect.
 *
 * Points lie in the order of a curve that fills space (Morton's), 32 to a leaf; boxes around the leaves, and around
 * pairs of boxes, make a binary tree. The points of a leaf look for their nearest ones together: first among
 * themselves, then in the rest of the tree, the next of kin first, and nowhere that is farther away than what they
 * have. Every point's search is its own, so that results are the same for any number of threads.
 *
 * Plain C, rounded as numpy rounds. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LEAF 32
/* Of a point's nearest ones, itself included. */
#define MOST 32
#define KEY_BITS 10
#define DEPTH 64

typedef struct {
    double low[3], high[3];
} box;

typedef struct {
    int64_t leaves; /* a power of two; those behind the last point are empty */
    box *boxes;     /* [2 * leaves], the root at 1, the children of i at 2 i and 2 i + 1 */
    double *place[3]; /* [leaves * LEAF], infinite behind the last point */
    int32_t *point;   /* [leaves * LEAF], number of the point there, -1 behind the last */
} tree;

/* The nearest points that one leaf's points have found so far, in ascending order, equal ones by number. */
typedef struct {
    int count;
    int32_t slot[LEAF];
    double squared[LEAF][MOST];
    int32_t other[LEAF][MOST];
} search;

/* Those of math.h are calls. */
static inline double smaller(double a, double b) { return a < b ? a : b; }
static inline double larger(double a, double b) { return a > b ? a : b; }

static uint32_t spread(uint32_t bits)
{
    bits = (bits | bits << 16) & 0x030000ff;
    bits = (bits | bits << 8) & 0x0300f00f;
    bits = (bits | bits << 4) & 0x030c30c3;
    return (bits | bits << 2) & 0x09249249;
}

/* Numbers of the points along the curve; 0 where there is no memory. */
static int sort_along_curve(const double *points, int64_t count, int32_t *order)
{
    double low[3] = {INFINITY, INFINITY, INFINITY}, size = 0;
    for (int axis = 0; axis < 3; axis++) {
        double high = -INFINITY;
        for (int64_t i = 0; i < count; i++) {
            low[axis] = smaller(low[axis], points[3 * i + axis]);
            high = larger(high, points[3 * i + axis]);
        }
        size = larger(size, high - low[axis]);
    }
    uint32_t *keys = malloc(count * sizeof *keys), *next_keys = malloc(count * sizeof *next_keys);
    int32_t *next_order = malloc(count * sizeof *next_order);
    int good = keys && next_keys && next_order;
    double scale = size > 0 ? ((1 << KEY_BITS) - 1) / size : 0;
    for (int64_t i = 0; good && i < count; i++) {
        keys[i] = 0;
        for (int axis = 0; axis < 3; axis++)
            keys[i] |= spread((uint32_t)((points[3 * i + axis] - low[axis]) * scale)) << axis;
        order[i] = (int32_t)i;
    }
    int32_t *from = order, *to = next_order;
    for (int shift = 0; good && shift < 3 * KEY_BITS; shift += KEY_BITS) {
        int64_t starts[(1 << KEY_BITS) + 1] = {0};
        for (int64_t i = 0; i < count; i++)
            starts[(keys[i] >> shift & ((1 << KEY_BITS) - 1)) + 1]++;
        for (int digit = 0; digit < 1 << KEY_BITS; digit++)
            starts[digit + 1] += starts[digit];
        for (int64_t i = 0; i < count; i++) {
            int64_t place = starts[keys[i] >> shift & ((1 << KEY_BITS) - 1)]++;
            next_keys[place] = keys[i];
            to[place] = from[i];
        }
        uint32_t *spare_keys = keys;
        keys = next_keys, next_keys = spare_keys;
        int32_t *spare = from;
        from = to, to = spare;
    }
    /* Three passes: the last one went to the other place. */
    if (good)
        memcpy(order, from, count * sizeof *order);
    free(keys);
    free(next_keys);
    free(next_order);
    return good;
}

static void free_tree(tree *t)
{
    free(t->boxes);
    free(t->place[0]);
    free(t->point);
}

/* 0 where there is no memory. */
static int make_tree(const double *points, int64_t count, tree *t)
{
    t->leaves = 1;
    while (t->leaves * LEAF < count)
        t->leaves *= 2;
    int64_t places = t->leaves * LEAF;
    t->boxes = malloc(2 * t->leaves * sizeof *t->boxes);
    t->place[0] = malloc(3 * places * sizeof *t->place[0]);
    t->point = malloc(places * sizeof *t->point);
    if (!t->boxes || !t->place[0] || !t->point || !sort_along_curve(points, count, t->point))
        return 0;
    for (int axis = 0; axis < 3; axis++) {
        t->place[axis] = t->place[0] + axis * places;
        for (int64_t i = 0; i < places; i++)
            t->place[axis][i] = i < count ? points[3 * t->point[i] + axis] : INFINITY;
    }
    for (int64_t i = count; i < places; i++)
        t->point[i] = -1;
    for (int64_t node = 2 * t->leaves - 1; node > 0; node--) {
        box *b = t->boxes + node;
        for (int axis = 0; axis < 3; axis++) {
            if (node < t->leaves) {
                b->low[axis] = smaller(b[node].low[axis], b[node + 1].low[axis]);
                b->high[axis] = larger(b[node].high[axis], b[node + 1].high[axis]);
                continue;
            }
            b->low[axis] = INFINITY, b->high[axis] = -INFINITY;
            int64_t first = (node - t->leaves) * LEAF;
            for (int64_t i = first; i < first + LEAF && i < count; i++) {
                b->low[axis] = smaller(b->low[axis], t->place[axis][i]);
                b->high[axis] = larger(b->high[axis], t->place[axis][i]);
            }
        }
    }
    return 1;
}

/* Square of the distance between two boxes, never above that of points in them, as differences, squares and sums are
 * rounded alike; infinite where one is empty. */
static inline double apart(const double *low, const double *high, const box *b)
{
    double sum = 0;
    for (int axis = 0; axis < 3; axis++) {
        double gap = larger(larger(b->low[axis] - high[axis], low[axis] - b->high[axis]), 0);
        sum += gap * gap;
    }
    return sum;
}

/* Looks through a leaf for each point of the search. */
static void look(const tree *t, int64_t leaf, search *s, int wanted)
{
    const double *x = t->place[0] + leaf * LEAF, *y = t->place[1] + leaf * LEAF, *z = t->place[2] + leaf * LEAF;
    const int32_t *point = t->point + leaf * LEAF;
    const box *b = t->boxes + t->leaves + leaf;
    for (int q = 0; q < s->count; q++) {
        const double at[3] = {t->place[0][s->slot[q]], t->place[1][s->slot[q]], t->place[2][s->slot[q]]};
        double *squared = s->squared[q], found[LEAF];
        int32_t *other = s->other[q];
        if (apart(at, at, b) > squared[wanted - 1])
            continue;
        for (int i = 0; i < LEAF; i++) {
            double dx = x[i] - at[0], dy = y[i] - at[1], dz = z[i] - at[2];
            found[i] = dx * dx + dy * dy + dz * dz;
        }
        for (int i = 0; i < LEAF; i++) {
            int last = wanted - 1;
            if (found[i] > squared[last] || point[i] < 0 || (found[i] == squared[last] && point[i] > other[last]))
                continue;
            for (; last > 0 && (squared[last - 1] > found[i] ||
                                (squared[last - 1] == found[i] && other[last - 1] > point[i])); last--) {
                squared[last] = squared[last - 1];
                other[last] = other[last - 1];
            }
            squared[last] = found[i];
            other[last] = point[i];
        }
    }
}

static double farthest(const search *s, int wanted)
{
    double most = 0;
    for (int q = 0; q < s->count; q++)
        most = larger(most, s->squared[q][wanted - 1]);
    return most;
}

/* The nearest points of the points of a leaf that are asked about. */
static void search_leaf(const tree *t, int64_t leaf, search *s, int wanted)
{
    const box *own = t->boxes + t->leaves + leaf;
    for (int q = 0; q < s->count; q++)
        for (int i = 0; i < wanted; i++)
            s->squared[q][i] = INFINITY, s->other[q][i] = INT32_MAX;
    look(t, leaf, s, wanted);
    double most = farthest(s, wanted);
    for (int64_t node = t->leaves + leaf; node > 1; node /= 2) {
        int64_t stack[DEPTH] = {node ^ 1};
        for (int height = 1; height > 0;) {
            int64_t i = stack[--height];
            if (!(apart(own->low, own->high, t->boxes + i) <= most))
                continue;
            if (i >= t->leaves) {
                look(t, i - t->leaves, s, wanted);
                most = farthest(s, wanted);
                continue;
            }
            double first = apart(own->low, own->high, t->boxes + 2 * i);
            double second = apart(own->low, own->high, t->boxes + 2 * i + 1);
            stack[height++] = 2 * i + (first <= second);
            stack[height++] = 2 * i + (first > second);
        }
    }
}

/* points double [count, 3], finite, among bool [count], -> others int32 [count, wanted], the nearest points in
 * ascending order of their distance, itself included, and touching int32 [count], how many of them touch it: those no
 * farther away than `gap` and than twice its spacing, the median distance of the `half` nearest others. 0 where a point
 * is not asked about. Returns 0 where there is no memory. */
int touching_points(const double *points, const uint8_t *among, double gap, int32_t *others, int32_t *touching,
                    int64_t count, int wanted, int half, int threads)
{
    tree t = {0};
    if (!make_tree(points, count, &t)) {
        free_tree(&t);
        return 0;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t leaf = 0; leaf < t.leaves; leaf++) {
        search s = {0};
        for (int64_t i = leaf * LEAF; i < (leaf + 1) * LEAF; i++)
            if (t.point[i] >= 0 && among[t.point[i]])
                s.slot[s.count++] = (int32_t)i;
        if (s.count == 0)
            continue;
        search_leaf(&t, leaf, &s, wanted);
        for (int q = 0; q < s.count; q++) {
            int64_t point = t.point[s.slot[q]];
            double distance[MOST];
            for (int i = 0; i < wanted; i++)
                distance[i] = sqrt(s.squared[q][i]);
            double spacing = (distance[half - half / 2] + distance[1 + half / 2]) / 2, reach = larger(gap, 2 * spacing);
            int32_t number = 0;
            while (number < wanted && distance[number] <= reach)
                number++;
            touching[point] = number;
            memcpy(others + point * wanted, s.other[q], wanted * sizeof *others);
        }
    }
    free_tree(&t);
    return 1;
}

static int32_t root_of(int32_t *parents, int32_t i)
{
    while (parents[i] != i)
        i = parents[i] = parents[parents[i]];
    return i;
}

/* masks bool [rows, count], others and touching as above, -> parts int32 [rows, count]: the number of the part that
 * the point is in, -1 outside of the mask. Parts are numbered in the order of their masks and first points. Returns how
 * many there are, -1 where there is no memory. */
int64_t connected_parts(const uint8_t *masks, const int32_t *others, const int32_t *touching, int32_t *parts,
                        int64_t rows, int64_t count, int wanted, int threads)
{
    int32_t *parents = malloc(rows * count * sizeof *parents + 1);
    int64_t number = 0;
    if (!parents)
        return -1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        const uint8_t *mask = masks + row * count;
        int32_t *parent = parents + row * count;
        for (int32_t i = 0; i < count; i++)
            parent[i] = mask[i] ? i : -1;
        for (int32_t i = 0; i < count; i++)
            for (int j = 0; mask[i] && j < touching[i]; j++) {
                int32_t other = others[i * (int64_t)wanted + j];
                if (!mask[other])
                    continue;
                int32_t one = root_of(parent, i), two = root_of(parent, other);
                /* The first point of a part is its root. */
                parent[one > two ? one : two] = one > two ? two : one;
            }
        for (int32_t i = 0; i < count; i++)
            if (mask[i])
                parent[i] = root_of(parent, i);
    }
    for (int64_t i = 0; i < rows * count; i++) {
        int32_t parent = parents[i];
        parts[i] = parent < 0 ? -1 : parent == i % count ? (int32_t)number++ : parts[i / count * count + parent];
    }
    free(parents);
    return number;
}
