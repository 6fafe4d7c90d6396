// Shards in files: what is loaded is what was saved, and of what is not whole nothing is loaded.
#include "training/cuckoo/core/file.h"

#include <cstdio>
#include <map>
#include <random>

#include "tests/training/cuckoo/check.h"

namespace cuckoo {
namespace {

Config Of(std::vector<Segment> segments, size_t shards) { return {Layout(std::move(segments), 7), shards, {}}; }

std::vector<Segment> Two() {
  return {{1, {}, {.rule = Rule::kFtrl}}, {6, {Kind::kNormal, 0.1f}, {.rule = Rule::kAdagrad, .start = 0.1f}}};
}

struct File {
  File() : file(std::tmpfile()) { CHECK(file != nullptr); }
  ~File() { std::fclose(file); }
  int fd() const { return fileno(file); }
  void Rewind() const { CHECK_EQ(lseek(fd(), 0, SEEK_SET), 0); }
  off_t bytes() const { return lseek(fd(), 0, SEEK_END); }
  std::FILE* file;
};

void Save(const Table& table, const File& file) {
  for (size_t s = 0; s < table.config().shards; ++s) SaveShard(table, s, file.fd());
  file.Rewind();
}
void Load(Table* table, const File& file) {
  for (size_t s = 0; s < table->config().shards; ++s) LoadShard(table, s, file.fd());
}

// All of a table: key -> tick, then the row's numbers.
std::map<int64_t, std::vector<float>> Dump(const Table& table) {
  const size_t dim = table.layout().dim(), slots = table.layout().slot_floats();
  const std::vector<int64_t> keys = table.KeysSince(0);
  std::vector<float> w(keys.size() * dim), s(keys.size() * slots);
  std::vector<uint32_t> ticks(keys.size());
  const std::unique_ptr<bool[]> found(new bool[keys.size()]);
  CHECK_EQ(table.Read(keys.data(), keys.size(), w.data(), s.data(), ticks.data(), found.get()), keys.size());
  std::map<int64_t, std::vector<float>> rows;
  for (size_t k = 0; k < keys.size(); ++k) {
    std::vector<float>& row = rows[keys[k]];
    row = {static_cast<float>(ticks[k])};
    row.insert(row.end(), &w[k * dim], &w[k * dim] + dim);
    row.insert(row.end(), &s[k * slots], &s[k * slots] + slots);
  }
  CHECK_EQ(rows.size(), keys.size());
  return rows;
}

void Fill(Table* table, size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> out(table->layout().dim());
  for (size_t k = 0; k < n; ++k) {
    const auto key = static_cast<int64_t>(random());
    table->Lookup(&key, 1, out.data());
    bool removed;
    if (random() % 4 == 0) table->Remove(&key, 1, &removed);
    if (random() % 64 == 0) table->SetTick(table->tick() + 1);
  }
}

void TestRoundTrip() {
  for (const size_t shards : {1, 4, 64}) {
    for (const size_t n : {0, 1, 5, 100, 3000, Rounds(60'000)}) {
      const Config config = Of(Two(), shards);
      Table table(config), loaded(config);
      Fill(&table, n, n + shards);
      const File file;
      Save(table, file);
      Load(&loaded, file);
      CHECK_EQ(loaded.tick(), table.tick());
      CHECK_EQ(loaded.stats().size, table.stats().size);
      CHECK(Dump(loaded) == Dump(table));
      Fill(&loaded, 2000, 1);  // and goes on as the first would have
      Fill(&table, 2000, 1);
      CHECK(Dump(loaded) == Dump(table));
    }
  }
}

std::string Refused(Table* table, const File& file) {
  file.Rewind();
  try {
    Load(table, file);
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

void TestRefused() {
  const Config config = Of(Two(), 2);
  Table table(config);
  Fill(&table, 10'000, 3);
  const File file;
  Save(table, file);
  const auto begins = [](const std::string& s, const char* with) { return s.rfind(with, 0) == 0; };

  CHECK(begins(Refused(&table, file), "the shard to load into is not empty"));
  Table more_shards(Of(Two(), 4));
  CHECK(begins(Refused(&more_shards, file), "a shard of another table"));
  std::vector<Segment> other = Two();
  other[1].optimizer.rule = Rule::kMomentum;  // as many numbers, which mean something else
  Table another(Of(other, 2));
  CHECK(begins(Refused(&another, file), "a shard of another table"));

  // Whatever byte is changed, whatever is cut off: refused, and the shard is as empty as it was, and good for use.
  std::mt19937_64 random(5);
  const off_t bytes = file.bytes();
  for (int trial = 0; trial < 60; ++trial) {
    const off_t at = trial < 20 ? trial * 3 : static_cast<off_t>(random() % bytes);
    char byte;
    CHECK_EQ(pread(file.fd(), &byte, 1, at), 1);
    const char changed = static_cast<char>(byte ^ (1 << random() % 8));
    CHECK_EQ(pwrite(file.fd(), &changed, 1, at), 1);
    Table loaded(config);
    CHECK(Refused(&loaded, file) != "");
    for (const auto& [key, row] : Dump(loaded)) CHECK(loaded.ShardOf(Hash(key)) == 0);  // the shard before it stands
    Fill(&loaded, 500, 9);
    CHECK(loaded.stats().size > 300);
    CHECK_EQ(pwrite(file.fd(), &byte, 1, at), 1);
  }
  for (int trial = 0; trial < 20; ++trial) {
    const File cut;
    std::vector<char> data(trial == 0 ? 0 : random() % bytes);
    CHECK_EQ(pread(file.fd(), data.data(), data.size(), 0), static_cast<ssize_t>(data.size()));
    CHECK_EQ(write(cut.fd(), data.data(), data.size()), static_cast<ssize_t>(data.size()));
    Table loaded(config);
    CHECK_EQ(Refused(&loaded, cut), "a shard is cut short");
  }
  Table loaded(config);
  CHECK_EQ(Refused(&loaded, file), "");
  CHECK(Dump(loaded) == Dump(table));
}

}  // namespace
}  // namespace cuckoo

int main() {
  cuckoo::TestRoundTrip();
  cuckoo::TestRefused();
  std::cout << "file: all passed" << std::endl;
}
