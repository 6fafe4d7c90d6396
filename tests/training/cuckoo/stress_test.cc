// Eight threads on one table that grows meanwhile: nothing is lost, counted twice or read half written.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "tests/training/cuckoo/check.h"
#include "training/cuckoo/core/file.h"
#include "training/cuckoo/core/table.h"

namespace cuckoo {
namespace {

constexpr int kThreads = 8;
constexpr size_t kDim = 8;

Config Zeros(size_t shards) {
  return {Layout({{kDim, {}, {.rule = Rule::kAdagrad, .epsilon = 1e-7f}}}, 0), shards, {}};
}

size_t ApplyOnes(Table& table, const std::vector<int64_t>& keys) {
  const std::vector<float> ones(kDim, 1);
  const float rate = 0.1f;
  return table.Update(keys.data(), keys.size(), [&](float* const* rows, const uint32_t*, size_t n) {
    const std::vector<const float*> gradients(n, ones.data());
    table.layout().Step({rows, gradients.data(), n}, &rate);
  });
}

template <class F>
void InThreads(F f) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(f, t);
  for (auto& thread : threads) thread.join();
}

// With gradient 1 and slots that begin with 0 the accumulator counts the steps: the sum over all rows must be theirs.
void TestSumsAddUp(int rounds) {
  Table table(Zeros(4));
  std::atomic<size_t> steps = 0;
  InThreads([&](int t) {
    std::mt19937_64 random(t);
    for (int round = 0; round < rounds; ++round) {
      const size_t n = 1 + random() % 700;
      std::vector<int64_t> keys(n);
      for (auto& key : keys) key = static_cast<int64_t>(random() % (50 * (round + 1)));  // the table keeps growing
      std::vector<float> weights(n * kDim);
      table.Lookup(keys.data(), n, weights.data());
      for (size_t k = 0; k < n; ++k) {
        for (size_t i = 1; i < kDim; ++i) CHECK_EQ(weights[k * kDim + i], weights[k * kDim]);  // a row is read whole
      }
      CHECK_EQ(ApplyOnes(table, keys), n);
      steps += n;
    }
  });
  const std::vector<int64_t> keys = table.KeysSince(0);
  CHECK_EQ(keys.size(), table.stats().size);
  std::vector<float> weights(keys.size() * kDim), slots(keys.size() * kDim);
  std::vector<uint32_t> ticks(keys.size());
  const std::unique_ptr<bool[]> found(new bool[keys.size()]);
  CHECK_EQ(table.Read(keys.data(), keys.size(), weights.data(), slots.data(), ticks.data(), found.get()), keys.size());
  size_t sum = 0;
  for (size_t k = 0; k < keys.size(); ++k) sum += static_cast<size_t>(slots[k * kDim]);
  CHECK_EQ(sum, steps.load());
}

// Every verb at once. Each thread owns the keys of its remainder, inserts and removes those, and reads everybody's.
void TestEverythingAtOnce(int rounds) {
  Table table(Zeros(4));
  std::vector<std::vector<bool>> present(kThreads);
  InThreads([&](int t) {
    std::mt19937_64 random(100 + t);
    std::vector<bool> mine(4000);
    std::vector<float> weights(1000 * kDim), slots(1000 * kDim);
    std::vector<uint32_t> ticks(1000);
    const std::unique_ptr<bool[]> flags(new bool[1000]);
    std::vector<int64_t> keys;
    for (int round = 0; round < rounds; ++round) {
      const size_t n = random() % 300, from = random() % (mine.size() - n);
      keys.clear();
      for (size_t k = from; k < from + n; ++k) keys.push_back(static_cast<int64_t>(k * kThreads + t));
      switch (random() % 6) {
        case 0:
          table.Lookup(keys.data(), n, weights.data());
          std::fill_n(mine.begin() + from, n, true);
          break;
        case 1:
          table.Import(keys.data(), n, weights.data(), slots.data(), ticks.data());
          std::fill_n(mine.begin() + from, n, true);
          break;
        case 2:
          table.Remove(keys.data(), n, flags.get());
          for (size_t k = 0; k < n; ++k) CHECK_EQ(flags[k], static_cast<bool>(mine[from + k]));
          std::fill_n(mine.begin() + from, n, false);
          break;
        case 3:
          ApplyOnes(table, keys);
          break;
        case 4:
          for (auto& key : keys) key += static_cast<int64_t>(random() % kThreads);
          table.Find(keys.data(), n, weights.data());
          break;
        case 5: {
          table.SetTick(table.tick() + 1);
          std::vector<int64_t> changed = table.KeysSince(table.tick() - 1);
          if (changed.size() > 1000) changed.resize(1000);
          table.Read(changed.data(), changed.size(), weights.data(), slots.data(), ticks.data(), flags.get());
          break;
        }
      }
      std::fill(weights.begin(), weights.end(), 0.5f);
      std::fill(slots.begin(), slots.end(), 0.5f);
      std::fill(ticks.begin(), ticks.end(), 0);
    }
    present[t] = mine;
  });
  std::vector<float> weights(kDim), slots(kDim);
  size_t size = 0;
  for (int t = 0; t < kThreads; ++t) {
    for (size_t k = 0; k < present[t].size(); ++k) {
      const auto key = static_cast<int64_t>(k * kThreads + t);
      uint32_t tick;
      bool found;
      table.Read(&key, 1, weights.data(), slots.data(), &tick, &found);
      CHECK_EQ(found, static_cast<bool>(present[t][k]));
      size += found;
    }
  }
  CHECK_EQ(size, table.stats().size);
}

// The table grows, rows come and go, and is scanned meanwhile: a scan sees each key that stays exactly once, an
// eviction takes what is old and nothing else, and a shard's file is whole.
void TestScansWhileItGrows(int rounds) {
  Table table(Zeros(2));
  table.SetTick(2);
  constexpr int64_t kPinned = 3000, kOld = int64_t{1} << 40, kNew = int64_t{1} << 41;
  std::vector<int64_t> pinned(kPinned);
  for (int64_t k = 0; k < kPinned; ++k) pinned[k] = k;
  std::vector<float> weights(kPinned * kDim);
  table.Lookup(pinned.data(), pinned.size(), weights.data());
  std::atomic<size_t> imported = 0, looked_up = 0, evicted = 0;
  std::atomic<int> growing = 4;
  InThreads([&](int t) {
    std::mt19937_64 random(t);
    if (t < 4) {  // new rows, half of them of tick 1, which is old
      for (int round = 0; round < rounds; ++round) {
        const size_t n = 1 + random() % 200;
        std::vector<int64_t> keys(n);
        for (size_t k = 0; k < n; ++k) keys[k] = (round * int64_t{200} + static_cast<int64_t>(k)) * 4 + t + kOld;
        const std::vector<float> rows(n * kDim, 0.5f);
        table.Import(keys.data(), n, rows.data(), rows.data(), std::vector<uint32_t>(n, 1).data());
        imported += n;
        for (auto& key : keys) key += kNew - kOld;
        std::vector<float> out(n * kDim);
        table.Lookup(keys.data(), n, out.data());
        looked_up += n;
        ApplyOnes(table, pinned);
      }
      --growing;
    } else if (t < 6) {  // scans
      while (growing > 0) {
        std::vector<int64_t> keys = table.KeysSince(t == 4 ? 0 : 1);
        std::sort(keys.begin(), keys.end());
        CHECK(std::adjacent_find(keys.begin(), keys.end()) == keys.end());
        CHECK(std::includes(keys.begin(), keys.end(), pinned.begin(), pinned.end()));
        std::FILE* file = std::tmpfile();
        SaveShard(table, t - 4, fileno(file));
        rewind(file);
        Table loaded(table.config());
        LoadShard(&loaded, t - 4, fileno(file));
        for (const int64_t key : pinned) {
          if (table.ShardOf(Hash(key)) == static_cast<size_t>(t - 4)) {
            CHECK(static_cast<bool>(loaded.shard(t - 4).index.Find(key, Hash(key))));
          }
        }
        std::fclose(file);
      }
    } else if (t == 6) {
      while (growing > 0) {
        std::vector<int64_t> keys;
        evicted += table.Evict(1, &keys);
        for (const int64_t key : keys) CHECK(kOld <= key && key < kNew);
      }
    } else {
      std::vector<float> out(kPinned * kDim);
      while (growing > 0) {
        table.Find(pinned.data(), pinned.size(), out.data());
        for (size_t k = 0; k < pinned.size(); ++k) {
          for (size_t i = 1; i < kDim; ++i) CHECK_EQ(out[k * kDim + i], out[k * kDim]);  // a row is read whole
        }
      }
    }
  });
  std::vector<int64_t> keys;
  evicted += table.Evict(1, &keys);
  CHECK_EQ(evicted.load(), imported.load());
  CHECK_EQ(table.stats().size, kPinned + looked_up.load());
}

}  // namespace
}  // namespace cuckoo

int main(int argc, char** argv) {
  // The thread sanitizer needs no bad luck: with any one lock of the table taken away it reports a race within 100.
  const int rounds = argc > 1 ? std::atoi(argv[1]) : kThreadSanitizer ? 200 : 400;
  cuckoo::TestSumsAddUp(rounds);
  cuckoo::TestEverythingAtOnce(rounds * 5);
  cuckoo::TestScansWhileItGrows(rounds / 16);
  std::cout << "stress: all passed" << std::endl;
}
