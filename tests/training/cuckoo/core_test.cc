// The table's core in one thread: against std::map, at the limits of key, load and memory.
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "tests/training/cuckoo/check.h"
#include "tests/training/cuckoo/crafted.h"
#include "training/cuckoo/core/table.h"

// The linker sends the core's allocations here (--wrap=aligned_alloc, --wrap=mprotect): after so many they fail.
extern "C" void* __real_aligned_alloc(size_t align, size_t bytes);
static long allocations_left = std::numeric_limits<long>::max();
extern "C" void* __wrap_aligned_alloc(size_t align, size_t bytes) {
  return allocations_left-- > 0 ? __real_aligned_alloc(align, bytes) : nullptr;
}
extern "C" int __real_mprotect(void* at, size_t bytes, int protection);
extern "C" int __wrap_mprotect(void* at, size_t bytes, int protection) {
  return allocations_left-- > 0 ? __real_mprotect(at, bytes, protection) : -1;
}

namespace cuckoo {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

Config Small(size_t dim, size_t shards) {
  const Optimizer adagrad{.rule = Rule::kAdagrad, .start = 0.25f, .epsilon = 1e-7f};
  std::vector<Segment> segments = {{1, {}, adagrad}};
  if (dim > 1) segments.push_back({dim - 1, {Kind::kNormal, 0.1f}, adagrad});
  return {Layout(segments, 7), shards, {}};
}

// A step of Small's segments.
size_t Apply(Table& table, const std::vector<int64_t>& keys, const float* gradients, float rate) {
  const float rates[2] = {rate, rate};
  return table.Update(keys.data(), keys.size(), [&](float* const* rows, const uint32_t* places, size_t n) {
    for (size_t r = 0; r < n; ++r) {
      const float* gradient = gradients + places[r] * table.layout().dim();
      table.layout().Step({&rows[r], &gradient, 1}, rates);
    }
  });
}

struct Row {
  std::vector<float> weights, slots;
  uint32_t tick;
};

// What the table must be: one std::map, every verb written the plain way.
struct Model {
  const Config config;
  std::map<int64_t, Row> rows;
  uint32_t tick = 1;

  Row& Insert(int64_t key) {
    auto [it, is_new] = rows.try_emplace(key);
    if (is_new) {
      std::vector<float> row(config.layout.floats());
      config.layout.Begin(key, row.data());
      const auto slots = row.begin() + config.layout.dim();
      it->second = {{row.begin(), slots}, {slots, row.end()}, tick};
    }
    return it->second;
  }
  void Apply(int64_t key, const float* g, float lr, float epsilon) {
    const auto it = rows.find(key);
    if (it == rows.end()) return;
    for (size_t i = 0; i < config.layout.dim(); ++i) {
      it->second.slots[i] += g[i] * g[i];
      it->second.weights[i] -= lr * g[i] / std::sqrt(it->second.slots[i] + epsilon);
    }
    it->second.tick = tick;
  }
};

void CheckSame(const Table& table, const Model& model, uint32_t since) {
  const size_t dim = model.config.layout.dim();
  const std::vector<int64_t> keys = table.KeysSince(since);
  std::set<int64_t> want;
  for (const auto& [key, row] : model.rows) {
    if (since == 0 || row.tick > since) want.insert(key);
  }
  CHECK_EQ(keys.size(), want.size());
  CHECK(std::set<int64_t>(keys.begin(), keys.end()) == want);
  std::vector<float> weights(keys.size() * dim), slots(keys.size() * dim);
  std::vector<uint32_t> ticks(keys.size());
  const std::unique_ptr<bool[]> found(new bool[keys.size()]);
  CHECK_EQ(table.Read(keys.data(), keys.size(), weights.data(), slots.data(), ticks.data(), found.get()), keys.size());
  for (size_t k = 0; k < keys.size(); ++k) {
    const Row& row = model.rows.at(keys[k]);
    CHECK_EQ(ticks[k], row.tick);
    for (size_t i = 0; i < dim; ++i) {
      CHECK_EQ(weights[k * dim + i], row.weights[i]);
      CHECK_EQ(slots[k * dim + i], row.slots[i]);
    }
  }
}

void TestAgainstMap(size_t dim, size_t shards, int64_t space, int steps, uint64_t seed) {
  std::mt19937_64 random(seed);
  Table table(Small(dim, shards));
  Model model{table.config(), {}};
  const int64_t edge[] = {kMin, kMin + 1, -1, 0, 1, kMax};
  for (int step = 0; step < steps; ++step) {
    const size_t n = random() % 5 == 0 ? random() % 3000 : random() % 40;  // long ones pass several runs of one shard
    std::vector<int64_t> keys(n);
    std::vector<float> a(n * dim), b(n * dim);
    for (auto& key : keys) key = random() % 8 == 0 ? edge[random() % 6] : static_cast<int64_t>(random() % space);
    for (auto& x : a) x = static_cast<float>(random() % 2001) / 1000 - 1;
    switch (random() % 9) {
      case 0:
      case 1:
        table.Lookup(keys.data(), n, b.data());
        for (size_t k = 0; k < n; ++k) {
          const Row& row = model.Insert(keys[k]);
          for (size_t i = 0; i < dim; ++i) CHECK_EQ(b[k * dim + i], row.weights[i]);
        }
        break;
      case 2:
        table.Find(keys.data(), n, b.data());
        for (size_t k = 0; k < n; ++k) {
          const auto it = model.rows.find(keys[k]);
          for (size_t i = 0; i < dim; ++i) CHECK_EQ(b[k * dim + i], it == model.rows.end() ? 0 : it->second.weights[i]);
        }
        break;
      case 3: {
        size_t want = 0;
        for (size_t k = 0; k < n; ++k) {
          want += model.rows.count(keys[k]);
          model.Apply(keys[k], &a[k * dim], 0.1f, 1e-7f);
        }
        CHECK_EQ(Apply(table, keys, a.data(), 0.1f), want);
        break;
      }
      case 4: {
        std::vector<uint32_t> ticks(n);
        for (size_t k = 0; k < n; ++k) {
          b[k * dim] = static_cast<float>(k);
          ticks[k] = static_cast<uint32_t>(random() % (model.tick + 2));
          model.rows[keys[k]] = {std::vector<float>(&a[k * dim], &a[k * dim] + dim),
                                 std::vector<float>(&b[k * dim], &b[k * dim] + dim), ticks[k]};
        }
        for (const uint32_t tick : ticks) model.tick = std::max(model.tick, tick);
        table.Import(keys.data(), n, a.data(), b.data(), ticks.data());
        break;
      }
      case 5: {
        const std::unique_ptr<bool[]> removed(new bool[n]);
        table.Remove(keys.data(), n, removed.get());
        for (size_t k = 0; k < n; ++k) CHECK_EQ(removed[k], model.rows.erase(keys[k]) == 1);
        break;
      }
      case 6: {
        if (random() % 4 != 0) break;  // it empties much
        const auto tick = static_cast<uint32_t>(random() % (model.tick + 1));
        std::vector<int64_t> evicted = {7};  // what is there stays
        std::set<int64_t> want;
        for (const auto& [key, row] : model.rows) {
          if (row.tick <= tick) want.insert(key);
        }
        CHECK_EQ(table.Evict(tick, &evicted), want.size());
        CHECK_EQ(evicted.size(), want.size() + 1);
        CHECK(std::set<int64_t>(evicted.begin() + 1, evicted.end()) == want);
        for (const int64_t key : want) model.rows.erase(key);
        break;
      }
      case 7: {
        std::vector<size_t> calls(n);
        size_t updated = 0;
        const size_t parts = 1 + random() % 3;
        for (size_t part = 0; part < parts; ++part) {
          const auto count = [&](float* const* rows, const uint32_t* places, size_t m) {
            for (size_t r = 0; r < m; ++r) rows[r][0] = static_cast<float>(places[r]), ++calls[places[r]];
          };
          updated += table.Update(keys.data(), n, count, {part, parts});
        }
        size_t want = 0;
        for (size_t k = 0; k < n; ++k) {
          const auto it = model.rows.find(keys[k]);
          CHECK_EQ(calls[k], it == model.rows.end() ? 0u : 1u);
          if (it == model.rows.end()) continue;
          it->second.weights[0] = static_cast<float>(k);
          it->second.tick = model.tick;
          ++want;
        }
        CHECK_EQ(updated, want);
        break;
      }
      case 8:
        CHECK(table.SetTick(++model.tick));
        CHECK(!table.SetTick(model.tick - 1));
        break;
    }
    CHECK_EQ(table.tick(), model.tick);
    CHECK_EQ(table.stats().size, model.rows.size());
    if (step % 16 == 0) CheckSame(table, model, static_cast<uint32_t>(random() % (model.tick + 1)));
  }
  CheckSame(table, model, 0);
}

// The index is full at every size, and no key is lost.
void TestLoad() {
  Table table(Small(2, 4));
  std::vector<int64_t> keys(1000);
  std::vector<float> out(2 * keys.size());
  const int64_t rows = Rounds(300'000);
  for (int64_t next = 0; next < rows;) {
    for (auto& key : keys) key = next++ * 0x100000001;  // regular ids, as people number things
    table.Lookup(keys.data(), keys.size(), out.data());
    const Stats stats = table.stats();
    CHECK_EQ(stats.size, static_cast<size_t>(next));
    if (next > 4000) CHECK(static_cast<double>(stats.size) / stats.capacity > 0.93);
  }
  for (int64_t key = 0; key < rows; ++key) {
    const int64_t id = key * 0x100000001;
    bool found;
    uint32_t tick;
    float weights[2], slots[2];
    CHECK_EQ(table.Read(&id, 1, weights, slots, &tick, &found), 1u);
  }
}

// Displacement fills an index to its limit at every size: growth is never forced early.
void TestDisplacement() {
  Pager pager;
  Index index(size_t{16} << 20, &pager);
  constexpr uint32_t n = 100'000;
  for (uint32_t key = 0; key < n; ++key) {
    index.Insert(key, Hash(key), key, 1);
    if (key > 1000) CHECK(static_cast<double>(index.size()) / index.capacity() > 0.93);
  }
  for (uint32_t key = 0; key < n; ++key) {
    const Place place = index.Find(key, Hash(key));
    CHECK(static_cast<bool>(place));
    CHECK_EQ(place.row(), key);
  }
  pager.Stop();
}

// An index that hardly looks for room puts keys into the stash, and lets them out again: none is lost on the way.
void TestStash() {
  std::mt19937_64 random(9);
  size_t stashed = 0;
  Pager pager;
  for (int trial = 0; trial < Rounds(20'000); ++trial) {
    Index index(1 << 20, &pager, 2 + trial % 5);
    std::vector<int64_t> keys;
    for (int k = 0; k < 10 + trial % 200; ++k) {
      keys.push_back(static_cast<int64_t>(random()));
      index.Insert(keys.back(), Hash(keys.back()), static_cast<uint32_t>(keys.size() - 1), 1);
      stashed += index.shape().stashed;
      if (random() % 8 != 0) continue;
      index.Erase(index.Find(keys.back(), Hash(keys.back())));
      keys.pop_back();
    }
    CHECK_EQ(index.size(), keys.size());
    for (size_t k = 0; k < keys.size(); ++k) {
      const Place place = index.Find(keys[k], Hash(keys[k]));
      CHECK(static_cast<bool>(place));
      CHECK_EQ(place.row(), k);
    }
  }
  CHECK(stashed > 100);
}

// Bits of a choice that decide the bucket: the low ones the group, the high ones the place in it.
constexpr uint32_t Deciding(int high, int low) { return ~uint32_t{0} << (32 - high) | ((1u << low) - 1); }

// Ten keys whose hashes share the shard, the low half, and 20 bits of the high half of the product with kGolden: their
// two choices, if those were functions of the key alone.
void TestKeysCraftedForTheHash() {
  std::vector<int64_t> keys;
  for (uint64_t high = 1; keys.size() < 10; ++high) {
    const uint64_t hash = high << 32 | 0x12345678;
    if ((hash * kGolden >> 32 & Deciding(8, 12)) == 711) keys.push_back(KeyOf(hash));
    CHECK(high < uint64_t{1} << 27 && Hash(KeyOf(hash)) == hash);
  }
  Table table(Small(2, 4));
  std::vector<float> out(2 * keys.size());
  table.Lookup(keys.data(), keys.size(), out.data());
  CHECK_EQ(table.stats().size, keys.size());
  CHECK(table.stats().capacity < 200);
}

// Ten keys that share both buckets, as if the secret were known: two of them have no place in the index.
void TestKeysCraftedForTheSecret() {
  constexpr uint64_t kSecret = 0x123456789abcdef1;
  Pager pager;
  Index index(1 << 20, &pager, 512, kSecret);
  std::vector<int64_t> keys;
  for (int64_t key = 0; keys.size() < 10; ++key) {
    const uint64_t folded = Fold(Hash(key), kSecret);
    const bool first = (Index::ChoiceA(folded) & Deciding(3, 5)) == 0;
    if (first && (Index::ChoiceB(folded) & Deciding(3, 5)) == Deciding(3, 5)) keys.push_back(key);
  }
  const auto insert = [&](int64_t key) { index.Insert(key, Hash(key), static_cast<uint32_t>(key & 0xffffff), 1); };
  const auto check = [&] {
    CHECK_EQ(index.size(), keys.size());
    for (const int64_t key : keys) {
      const Place place = index.Find(key, Hash(key));
      CHECK(static_cast<bool>(place));
      CHECK_EQ(place.row(), static_cast<uint32_t>(key & 0xffffff));
    }
  };
  for (const int64_t key : keys) insert(key);
  check();
  CHECK(index.shape().stashed);
  CHECK(index.capacity() < 32);
  for (int k = 0; k < 3; ++k, keys.pop_back()) index.Erase(index.Find(keys.back(), Hash(keys.back())));
  keys.push_back(-1);
  insert(-1);  // and it finds room for those that waited
  check();
  CHECK(!index.shape().stashed);
  for (int64_t key = -1000; key < -1; ++key) {
    insert(key);
    keys.push_back(key);
  }
  check();
  CHECK(static_cast<double>(index.size()) / index.capacity() > 0.9);
  pager.Stop();
}

void TestMemoryIsUsedAgain() {
  Table table(Small(16, 4));
  std::vector<int64_t> keys(5000);
  std::vector<float> out(16 * keys.size());
  const std::unique_ptr<bool[]> removed(new bool[keys.size()]);
  size_t bytes = 0;
  for (int64_t round = 0; round < 20; ++round) {
    for (size_t k = 0; k < keys.size(); ++k) keys[k] = round * 1'000'003 + static_cast<int64_t>(k);
    table.Lookup(keys.data(), keys.size(), out.data());
    if (round == 4) bytes = table.stats().bytes;
    CHECK_EQ(table.Remove(keys.data(), keys.size(), removed.get()), keys.size());
  }
  CHECK(table.stats().bytes < bytes * 1.1);  // shards are of one size but for chance
  CHECK_EQ(table.stats().size, 0u);
}

void TestSmallTableIsSmall() {
  Table table(Small(17, 64));
  std::vector<int64_t> keys(100);
  std::vector<float> out(17 * keys.size());
  for (size_t k = 0; k < keys.size(); ++k) keys[k] = static_cast<int64_t>(k);
  table.Lookup(keys.data(), keys.size(), out.data());
  CHECK(table.stats().bytes < 100'000);
}

// A range keeps what was written whatever becomes of its pages, and a failed step of it changes nothing.
void TestRange() {
  constexpr size_t kEnd = size_t{22} << 20, kWord = sizeof(size_t);
  for (const size_t turn : {size_t{0}, size_t{5} << 12, kHugePage - (size_t{3} << 12)}) {
    Pager pager;
    Range range(size_t{32} << 20, turn, &pager);
    size_t failed = 0;
    for (size_t bytes = kWord; bytes < kEnd; bytes += 100 * kWord) {
      allocations_left = 0;
      try {
        range.Reserve(bytes);
      } catch (const std::bad_alloc&) {
        ++failed;
      }
      allocations_left = std::numeric_limits<long>::max();
      range.Reserve(bytes);
      size_t* word = reinterpret_cast<size_t*>(range.data() + bytes) - 1;
      CHECK_EQ(*word, 0u);
      *word = bytes;
    }
    CHECK(failed >= kEnd / kHugePage);
    for (size_t bytes = kWord; bytes < kEnd; bytes += 100 * kWord) {
      CHECK_EQ(*(reinterpret_cast<size_t*>(range.data() + bytes) - 1), bytes);
    }
    pager.Stop();
  }
}

// A page that is wanted is there, though nobody writes to it.
void TestPager() {
  Pager pager;
  Range range(size_t{32} << 20, 0, &pager);
  range.Reserve(size_t{17} << 20);
  char* const wanted = range.data() + (size_t{16} << 20);
  unsigned char there = 0;
  for (int tries = 0; tries < 10'000 && !there; ++tries) {
    CHECK_EQ(mincore(wanted, 4096, &there), 0);
    there &= 1;
    usleep(1000);
  }
  CHECK(there);
  CHECK_EQ(*wanted, 0);
  pager.Stop();
}

// Whichever allocation fails, what was there stays, and the table goes on once there is memory again.
void TestAllocationFailure() {
  constexpr size_t kDim = 128;  // 5 MB of rows: several steps of each shard
  for (long survive = 0; survive < 8; ++survive) {
    Table table(Small(kDim, 2));
    Model model{table.config(), {}};
    float out[kDim];
    bool failed = false;
    allocations_left = survive;
    for (int64_t key = 0; key < 5000 && !failed; ++key) {
      try {
        table.Lookup(&key, 1, out);
        model.Insert(key);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    }
    allocations_left = std::numeric_limits<long>::max();
    CHECK(failed || survive > 4);
    CHECK_EQ(table.stats().size, model.rows.size());
    CheckSame(table, model, 0);
    for (int64_t key = 0; key < 6000; ++key) {
      table.Lookup(&key, 1, out);
      model.Insert(key);
    }
    CheckSame(table, model, 0);
    Table untroubled(model.config);
    for (int64_t key = 0; key < static_cast<int64_t>(model.rows.size()); ++key) untroubled.Lookup(&key, 1, out);
    CHECK_EQ(table.stats().bytes, untroubled.stats().bytes);  // no row was lost to the failure
  }
}

}  // namespace
}  // namespace cuckoo

int main() {
  cuckoo::TestAgainstMap(1, 1, 50, 1500, 1);
  cuckoo::TestAgainstMap(17, 4, 5000, 600, 2);
  cuckoo::TestAgainstMap(3, 256, 1 << 30, 300, 3);
  cuckoo::TestLoad();
  cuckoo::TestDisplacement();
  cuckoo::TestStash();
  cuckoo::TestKeysCraftedForTheHash();
  cuckoo::TestKeysCraftedForTheSecret();
  cuckoo::TestMemoryIsUsedAgain();
  cuckoo::TestSmallTableIsSmall();
  cuckoo::TestRange();
  cuckoo::TestPager();
  cuckoo::TestAllocationFailure();
  std::cout << "core: all passed" << std::endl;
}
