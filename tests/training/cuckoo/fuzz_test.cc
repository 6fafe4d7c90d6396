// A fuzz target: bytes are calls of the table, checked against std::map; then a file that LoadShard is given.
//
// With clang: make cuckoo-fuzz (libFuzzer, for a minute). As a test: some thousand inputs of a fixed seed.
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>

#include "tests/training/cuckoo/check.h"
#include "training/cuckoo/core/file.h"

namespace cuckoo {
namespace {

// Takes an input apart; past its end all is zero.
struct Bytes {
  const uint8_t* data;
  size_t size;
  uint8_t Next() { return size == 0 ? 0 : (--size, *data++); }
};

// Few keys, so that they meet again: small ones, the ends of int64, and some the input spells out.
int64_t Key(Bytes& in) {
  const uint8_t kind = in.Next();
  if (kind < 200) return kind - 100;
  if (kind < 210) return std::numeric_limits<int64_t>::min() + kind - 200;
  if (kind < 220) return std::numeric_limits<int64_t>::max() - (kind - 210);
  uint64_t key = 0;
  for (int i = 0; i < 8; ++i) key = key << 8 | in.Next();
  return static_cast<int64_t>(key);
}

void Calls(Bytes& in) {
  const size_t shards = size_t{1} << in.Next() % 3;
  Table table({Layout({{3, {}, {.rule = Rule::kAdagrad}}}, 0), shards, {}});
  std::map<int64_t, std::pair<float, uint32_t>> model;  // first weight, tick
  uint32_t tick = 1;
  while (in.size > 0) {
    const uint8_t verb = in.Next();
    const size_t n = 1 + in.Next() % 40;
    std::vector<int64_t> keys(n);
    for (auto& key : keys) key = Key(in);
    if (verb >= 192) {  // a crowd, which makes the index grow
      for (size_t i = 0; i < n; ++i) keys[i] = static_cast<int64_t>(static_cast<uint64_t>(keys[0]) + i * i);
    }
    std::vector<float> out(n * 3), slots(n * 3);
    const auto is_in = [&](int64_t key) { return model.count(key) == 1; };
    switch (verb % 8) {
      case 0:
      case 1:
        table.Lookup(keys.data(), n, out.data());
        for (const int64_t key : keys) model.try_emplace(key, 0.0f, tick);
        for (size_t i = 0; i < n; ++i) CHECK_EQ(out[3 * i], model.at(keys[i]).first);
        break;
      case 2:
        table.Find(keys.data(), n, out.data());
        for (size_t i = 0; i < n; ++i) CHECK_EQ(out[3 * i], is_in(keys[i]) ? model.at(keys[i]).first : 0);
        break;
      case 3: {
        size_t want = 0;
        for (const int64_t key : keys) {
          if (!is_in(key)) continue;
          ++want;
          ++model.at(key).first;
          model.at(key).second = tick;
        }
        const auto count = [](float* const* rows, const uint32_t*, size_t m) {
          for (size_t r = 0; r < m; ++r) ++rows[r][0];
        };
        CHECK_EQ(table.Update(keys.data(), n, count), want);
        break;
      }
      case 4: {
        const std::unique_ptr<bool[]> removed(new bool[n]);
        table.Remove(keys.data(), n, removed.get());
        for (size_t i = 0; i < n; ++i) CHECK_EQ(removed[i], model.erase(keys[i]) == 1);
        break;
      }
      case 5: {
        const std::vector<uint32_t> ticks(n, tick);
        for (size_t i = 0; i < n; ++i) out[3 * i] = static_cast<float>(i), model[keys[i]] = {out[3 * i], tick};
        table.Import(keys.data(), n, out.data(), slots.data(), ticks.data());
        break;
      }
      case 6: {
        std::vector<int64_t> evicted;
        const uint32_t until = n > 30 ? tick - 1 : 0;
        table.Evict(until, &evicted);
        CHECK_EQ(evicted.size(), std::erase_if(model, [&](const auto& row) { return row.second.second <= until; }));
        break;
      }
      case 7:
        CHECK(table.SetTick(++tick));
        break;
    }
    CHECK_EQ(table.stats().size, model.size());
  }
  std::vector<int64_t> keys = table.KeysSince(0);
  std::sort(keys.begin(), keys.end());
  CHECK_EQ(keys.size(), model.size());
  size_t k = 0;
  for (const auto& [key, row] : model) CHECK_EQ(keys[k++], key);
}

// Any bytes may be a file: it is loaded or refused, and the table is whole.
void File(const uint8_t* data, size_t size, bool mend) {
  Table table({Layout({{1, {}, {}}}, 0), 1, {}}), other(table.config());
  std::vector<uint8_t> bytes(data, data + size);
  std::FILE* file = std::tmpfile();
  if (mend) {  // a true head, so that what follows is looked at
    for (int64_t key = 0; key < 9; ++key) {
      float out;
      other.Lookup(&key, 1, &out);
    }
    SaveShard(other, 0, fileno(file));
    for (size_t i = 0; i < size; i += 8) {
      CHECK(pwrite(fileno(file), data + i, 1, 48 + static_cast<off_t>(i * 5 % 300)) == 1);
    }
  } else {
    CHECK_EQ(std::fwrite(bytes.data(), 1, size, file), size);
    std::fflush(file);
  }
  rewind(file);
  lseek(fileno(file), 0, SEEK_SET);
  try {
    LoadShard(&table, 0, fileno(file));
  } catch (const FileError&) {
    CHECK_EQ(table.stats().size, 0u);
  }
  std::fclose(file);
  for (int64_t key = 0; key < 20; ++key) {
    float out = 1;
    table.Lookup(&key, 1, &out);
  }
  CHECK(table.stats().size >= 20);
}

}  // namespace
}  // namespace cuckoo

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  if (data[0] % 16 == 0) {
    cuckoo::File(data + 1, size - 1, data[0] % 32 == 0);
  } else {
    cuckoo::Bytes in{data, size};
    cuckoo::Calls(in);
  }
  return 0;
}

#ifndef CUCKOO_LIBFUZZER
int main() {
  std::mt19937_64 random(2026);
  for (int input = 0; input < Rounds(3000); ++input) {
    std::vector<uint8_t> bytes(random() % 2000);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::cout << "fuzz: all passed" << std::endl;
}
#endif
