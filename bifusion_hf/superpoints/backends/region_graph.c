/* Regions that merge greedily: `RegionGraph` of graph.py, to the same bits.
 *
 * Sums are taken in the order that graph.py takes them in, and no product is contracted with a sum (compiler option).
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One of two entries for a pair, in the row of each. Of regions that touch: pixel pairs and the sum of their contrast;
 * of regions that are near: the distance, as total. */
typedef struct {
    int32_t other;
    double count, total;
} entry;

typedef struct {
    entry *entries;
    int64_t size, capacity;
} row;

typedef struct {
    int64_t regions, features;
    double size_power;
    int32_t *parent;
    int64_t *sizes;
    double *sums;
    row *adjacent, *near, *barred;
    int failed; /* memory ran out */
} region_graph;

static entry *entry_of(const row *of, int32_t other) {
    for (int64_t k = 0; k < of->size; k++)
        if (of->entries[k].other == other) return of->entries + k;
    return NULL;
}

static void add_entry(region_graph *graph, row *to, entry added) {
    if (to->size == to->capacity) {
        int64_t capacity = to->capacity ? 2 * to->capacity : 8;
        entry *more = realloc(to->entries, capacity * sizeof(entry));
        if (!more) {
            graph->failed = 1;
            return;
        }
        to->entries = more, to->capacity = capacity;
    }
    to->entries[to->size++] = added;
}

static void drop_entry(row *from, int32_t other) {
    entry *found = entry_of(from, other);
    if (found) *found = from->entries[--from->size];
}

static void set_entry(region_graph *graph, row *to, entry value) {
    entry *found = entry_of(to, value.other);
    if (found) *found = value;
    else add_entry(graph, to, value);
}

void free_graph(region_graph *graph) {
    if (!graph) return;
    row *rows[3] = {graph->adjacent, graph->near, graph->barred};
    for (int kind = 0; kind < 3; kind++) {
        for (int64_t a = 0; rows[kind] && a < graph->regions; a++) free(rows[kind][a].entries);
        free(rows[kind]);
    }
    free(graph->parent), free(graph->sizes), free(graph->sums), free(graph);
}

/* Pairs are [pairs] low and high, and for those that touch count and total. NULL without memory. */
region_graph *new_graph(int64_t regions, int64_t features, const int64_t *sizes, const double *means, int64_t touching,
                        const int64_t *low, const int64_t *high, const int64_t *count, const double *total,
                        int64_t barred, const int64_t *barred_low, const int64_t *barred_high, double size_power) {
    region_graph *graph = calloc(1, sizeof(region_graph));
    if (!graph) return NULL;
    *graph = (region_graph){.regions = regions, .features = features, .size_power = size_power};
    graph->parent = malloc((regions + 1) * sizeof(int32_t));
    graph->sizes = malloc((regions + 1) * sizeof(int64_t));
    graph->sums = malloc((regions * features + 1) * sizeof(double));
    graph->adjacent = calloc(regions + 1, sizeof(row));
    graph->near = calloc(regions + 1, sizeof(row));
    graph->barred = calloc(regions + 1, sizeof(row));
    if (!graph->parent || !graph->sizes || !graph->sums || !graph->adjacent || !graph->near || !graph->barred) {
        free_graph(graph);
        return NULL;
    }
    for (int64_t a = 0; a < regions; a++) {
        graph->parent[a] = (int32_t)a, graph->sizes[a] = sizes[a];
        for (int64_t k = 0; k < features; k++) graph->sums[a * features + k] = means[a * features + k] * sizes[a];
    }
    for (int64_t k = 0; k < touching; k++) {
        add_entry(graph, graph->adjacent + low[k], (entry){(int32_t)high[k], (double)count[k], total[k]});
        add_entry(graph, graph->adjacent + high[k], (entry){(int32_t)low[k], (double)count[k], total[k]});
    }
    for (int64_t k = 0; k < barred; k++) {
        add_entry(graph, graph->barred + barred_low[k], (entry){(int32_t)barred_high[k], 0, 0});
        add_entry(graph, graph->barred + barred_high[k], (entry){(int32_t)barred_low[k], 0, 0});
    }
    if (graph->failed) {
        free_graph(graph);
        return NULL;
    }
    return graph;
}

/* 0 without memory, as of the functions below. */
int add_near(region_graph *graph, int64_t pairs, const int64_t *low, const int64_t *high, const double *distance) {
    for (int64_t k = 0; k < pairs; k++) {
        set_entry(graph, graph->near + low[k], (entry){(int32_t)high[k], 0, distance[k]});
        set_entry(graph, graph->near + high[k], (entry){(int32_t)low[k], 0, distance[k]});
    }
    return !graph->failed;
}

static double difference(const region_graph *graph, int32_t a, const entry *to) {
    int32_t b = to->other;
    double size_a = (double)graph->sizes[a], size_b = (double)graph->sizes[b], squares = 0;
    const double *first = graph->sums + a * graph->features, *second = graph->sums + b * graph->features;
    for (int64_t k = 0; k < graph->features; k++) {
        double d = first[k] / size_a - second[k] / size_b;
        squares += d * d;
    }
    return squares + to->total / to->count;
}

static double cost(const region_graph *graph, int32_t a, const entry *to) {
    int64_t one = graph->sizes[a], two = graph->sizes[to->other];
    return difference(graph, a, to) * pow((double)(one < two ? one : two), graph->size_power);
}

/* Merges two regions into the one with more neighbours, and returns it. */
static int32_t merge(region_graph *graph, int32_t a, int32_t b) {
    if (graph->adjacent[b].size > graph->adjacent[a].size) {
        int32_t swapped = a;
        a = b, b = swapped;
    }
    graph->parent[b] = a;
    graph->sizes[a] += graph->sizes[b];
    for (int64_t k = 0; k < graph->features; k++)
        graph->sums[a * graph->features + k] += graph->sums[b * graph->features + k];
    drop_entry(graph->adjacent + a, b);
    drop_entry(graph->near + a, b);
    for (int64_t k = 0; k < graph->adjacent[b].size; k++) {
        entry moved = graph->adjacent[b].entries[k];
        if (moved.other == a) continue;
        drop_entry(graph->adjacent + moved.other, b);
        entry *known = entry_of(graph->adjacent + a, moved.other);
        if (known) {
            known->count += moved.count, known->total += moved.total;
            *entry_of(graph->adjacent + moved.other, a) = (entry){a, known->count, known->total};
        } else {
            add_entry(graph, graph->adjacent + a, moved);
            add_entry(graph, graph->adjacent + moved.other, (entry){a, moved.count, moved.total});
        }
    }
    for (int64_t k = 0; k < graph->near[b].size; k++) {
        entry moved = graph->near[b].entries[k];
        if (moved.other == a) continue;
        drop_entry(graph->near + moved.other, b);
        const entry *known = entry_of(graph->near + a, moved.other);
        double distance = known && known->total < moved.total ? known->total : moved.total;
        set_entry(graph, graph->near + a, (entry){moved.other, 0, distance});
        set_entry(graph, graph->near + moved.other, (entry){a, 0, distance});
    }
    for (int64_t k = 0; k < graph->barred[b].size; k++) {
        int32_t other = graph->barred[b].entries[k].other;
        drop_entry(graph->barred + other, b);
        set_entry(graph, graph->barred + other, (entry){a, 0, 0});
        set_entry(graph, graph->barred + a, (entry){other, 0, 0});
    }
    graph->adjacent[b].size = graph->near[b].size = graph->barred[b].size = 0;
    return a;
}

/* What waits in a heap: the smallest cost first, then the smallest a, b. */
typedef struct {
    double cost;
    int32_t a, b, version_a, version_b;
} candidate;

typedef struct {
    candidate *items;
    int64_t size, capacity;
} heap;

static int is_before(const candidate *one, const candidate *two) {
    if (one->cost != two->cost) return one->cost < two->cost;
    return one->a != two->a ? one->a < two->a : one->b < two->b;
}

static void push(region_graph *graph, heap *to, candidate added) {
    if (to->size == to->capacity) {
        int64_t capacity = to->capacity ? 2 * to->capacity : 1024;
        candidate *more = realloc(to->items, capacity * sizeof(candidate));
        if (!more) {
            graph->failed = 1;
            return;
        }
        to->items = more, to->capacity = capacity;
    }
    int64_t place = to->size++;
    for (; place && is_before(&added, to->items + (place - 1) / 2); place = (place - 1) / 2)
        to->items[place] = to->items[(place - 1) / 2];
    to->items[place] = added;
}

static candidate pop(heap *from) {
    candidate first = from->items[0], last = from->items[--from->size];
    int64_t place = 0;
    for (int64_t child; (child = 2 * place + 1) < from->size; place = child) {
        if (child + 1 < from->size && is_before(from->items + child + 1, from->items + child)) child++;
        if (!is_before(from->items + child, &last)) break;
        from->items[place] = from->items[child];
    }
    from->items[place] = last;
    return first;
}

int absorb_small(region_graph *graph, int64_t min_size) {
    heap waiting = {0};
    for (int32_t a = 0; a < graph->regions; a++)
        if (graph->parent[a] == a && graph->sizes[a] < min_size)
            push(graph, &waiting, (candidate){(double)graph->sizes[a], a, 0, 0, 0});
    while (waiting.size && !graph->failed) {
        candidate next = pop(&waiting);
        int32_t a = next.a, best = -1;
        if (graph->parent[a] != a || (double)graph->sizes[a] != next.cost) continue;
        double least = INFINITY;
        /* Near ones count only where none that touches may be merged with. */
        for (int kind = 0; kind < 2 && best < 0; kind++) {
            const row *choices = kind ? graph->near + a : graph->adjacent + a;
            for (int64_t k = 0; k < choices->size; k++) {
                const entry *choice = choices->entries + k;
                if (entry_of(graph->barred + a, choice->other)) continue;
                double value = kind ? choice->total : difference(graph, a, choice);
                if (best < 0 || value < least || (value == least && choice->other < best))
                    best = choice->other, least = value;
            }
        }
        if (best < 0) continue;
        int32_t kept = merge(graph, a, best);
        if (graph->sizes[kept] < min_size)
            push(graph, &waiting, (candidate){(double)graph->sizes[kept], kept, 0, 0, 0});
    }
    free(waiting.items);
    return !graph->failed;
}

int merge_to(region_graph *graph, int64_t number, int64_t min_size) {
    heap waiting = {0};
    int64_t large = 0;
    /* Candidates of regions that have changed since are stale; a region that is gone has version -1. */
    int32_t *version = calloc(graph->regions + 1, sizeof(int32_t));
    if (!version) return 0;
    for (int32_t a = 0; a < graph->regions; a++) {
        if (graph->parent[a] != a) version[a] = -1;
        else large += graph->sizes[a] >= min_size;
        for (int64_t k = 0; k < graph->adjacent[a].size; k++) {
            const entry *to = graph->adjacent[a].entries + k;
            if (a < to->other) push(graph, &waiting, (candidate){cost(graph, a, to), a, to->other, 0, 0});
        }
    }
    while (waiting.size && large > number && !graph->failed) {
        candidate next = pop(&waiting);
        int32_t a = next.a, b = next.b;
        if (version[a] != next.version_a || version[b] != next.version_b || entry_of(graph->barred + a, b)) continue;
        large -= (graph->sizes[a] >= min_size) + (graph->sizes[b] >= min_size);
        version[a]++, version[b]++;
        int32_t kept = merge(graph, a, b);
        version[kept == a ? b : a] = -1;
        large += graph->sizes[kept] >= min_size;
        for (int64_t k = 0; k < graph->adjacent[kept].size; k++) {
            int32_t other = graph->adjacent[kept].entries[k].other;
            if (entry_of(graph->barred + kept, other)) continue;
            int32_t low = kept < other ? kept : other, high = kept < other ? other : kept;
            double value = cost(graph, low, entry_of(graph->adjacent + low, high));
            push(graph, &waiting, (candidate){value, low, high, version[low], version[high]});
        }
    }
    free(version), free(waiting.items);
    return !graph->failed;
}

void region_roots(const region_graph *graph, int64_t *roots) {
    for (int64_t a = 0; a < graph->regions; a++) {
        int64_t root = a;
        while (graph->parent[root] != root) root = graph->parent[root];
        roots[a] = root;
    }
}
