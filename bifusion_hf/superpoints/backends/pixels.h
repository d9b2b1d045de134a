/* What the kernels of pixels and those of regions share. */
#include <stdint.h>
#include <string.h>

/* The first place of bytes, from `place` on, that is not 0; `end` where there is none. */
static inline int64_t next_set(const uint8_t *bytes, int64_t place, int64_t end) {
    for (uint64_t eight; place + 8 <= end; place += 8) {
        memcpy(&eight, bytes + place, sizeof eight);
        if (eight) break;
    }
    while (place < end && !bytes[place]) place++;
    return place;
}

static inline int32_t find_root(int32_t *parent, int32_t item) {
    while (parent[item] != item) {
        parent[item] = parent[parent[item]];
        item = parent[item];
    }
    return item;
}

/* Joins two trees; the root is the smaller of theirs. */
static inline int32_t unite(int32_t *parent, int32_t first, int32_t second) {
    first = find_root(parent, first);
    second = find_root(parent, second);
    if (first < second) return parent[second] = first;
    return parent[first] = second;
}
