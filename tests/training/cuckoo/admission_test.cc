// Admission's statistics at fixed seeds: the count against a plain one, the draws against 1 - (1 - p)^n.
#include "training/cuckoo/core/admission.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include "tests/training/cuckoo/check.h"
#include "training/cuckoo/core/table.h"

namespace cuckoo {
namespace {

AdmissionConfig ByCount(uint32_t after, size_t pending) { return {after, 1, pending, 0}; }

struct Errors {
  double early, late;  // shares of the ids
};

// All ids wait at once and are seen once a round, in another order each round: at round `after` all must be admitted.
Errors AllSeenInTurn(uint32_t after, size_t ids, size_t pending) {
  std::mt19937_64 random(after);
  Admission admission(ByCount(after, pending), 1);
  std::vector<uint64_t> hashes(ids);
  for (auto& hash : hashes) hash = Hash(static_cast<int64_t>(random()));
  std::vector<size_t> order(ids);
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint32_t> admitted(ids, 0);
  for (uint32_t round = 1; round <= after; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t i : order) {
      if (admitted[i] == 0 && admission.Admit(hashes[i], 1, round)) admitted[i] = round;
    }
  }
  const double n = static_cast<double>(ids);
  return {std::count_if(admitted.begin(), admitted.end(), [&](uint32_t r) { return r != 0 && r < after; }) / n,
          std::count(admitted.begin(), admitted.end(), 0u) / n};
}

void TestCountIsExactWithinItsError() {
  for (const uint32_t after : {2u, 3u, 7u, 100u, 255u}) {
    const size_t ids = after > 50 ? 4'000 : 50'000;
    const Errors half = AllSeenInTurn(after, ids, 2 * ids);  // half as many as the lines are made for
    CHECK(half.early <= 0.0003);
    CHECK(half.late <= 0.0003);  // of an early one's tag a later id begins again
    const Errors full = AllSeenInTurn(after, ids, ids);
    CHECK(full.early <= 0.0003);
    // Once a line is too full it may forget one id after the other, round by round.
    CHECK(full.late <= 0.02);
  }
}

// A stream whose ids are seen as Zipf has it: few often, many once. Every decision against an exact count.
void TestZipfStream() {
  std::mt19937_64 random(11);
  Admission admission(ByCount(5, 1 << 16), 1);
  std::unordered_map<int64_t, uint32_t> seen;
  size_t admitted = 0, early = 0, late = 0, refused = 0;
  for (int step = 0; step < 400'000; ++step) {
    const double u = static_cast<double>(random() >> 11) * 0x1p-53;
    const int64_t id = static_cast<int64_t>(std::pow(1e6, u));  // id k with a probability of about 1 / k
    uint32_t& count = seen[id];
    if (count >= 1000) continue;  // has its row
    ++count;
    if (admission.Admit(Hash(id), 1, 1)) {
      ++admitted;
      early += count < 5;
      late += count > 5;
      count = 1000;
    } else {
      ++refused;
    }
  }
  CHECK(admitted > 5'000);
  CHECK(refused > 20'000);
  CHECK(early * 1000 <= admitted);
  CHECK(late * 1000 <= admitted);
}

// What is never seen again makes room by itself, and what is seen often enough is not pushed out by it.
void TestAgeing() {
  Admission admission(ByCount(4, 64), 1);  // 8 lines
  std::mt19937_64 random(5);
  for (int i = 0; i < 10'000; ++i) CHECK(!admission.Admit(random(), 1, 1));  // seen once each: none gets in
  size_t early = 0;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t hash = random();
    int sights = 1;
    while (!admission.Admit(hash, 1, 2)) {
      CHECK(++sights <= 4);  // never late
      for (int other = 0; other < 10; ++other) admission.Admit(random(), 1, 2);
    }
    early += sights < 4;
  }
  CHECK(early <= 5);  // 20 * 2^-16 a sight at most
}

void TestSightsCountSingly() {
  Admission admission(ByCount(5, 64), 1);
  CHECK(!admission.Admit(1, 3, 1));
  CHECK(admission.Admit(1, 2, 1));
  CHECK(admission.Admit(2, 5, 1));  // at once
  CHECK(!admission.Admit(1, 4, 1));
  CHECK(admission.Admit(3, ~uint64_t{0}, 1));  // no overflow
}

// Chi-square of how many of m ids are admitted by their n-th sight, n = 1..20, against 1 - (1 - p)^n.
void TestDrawsAreFair() {
  for (const double p : {0.01, 0.1, 0.5, 0.9}) {
    const int m = 20'000, most = 20;
    Admission admission({1, p, 0, 42}, 1);
    std::vector<int> at(most + 2, 0);  // how many were admitted at sight n; the last: not at all
    for (int64_t id = 0; id < m; ++id) {
      int n = 1;
      while (n <= most && !admission.Admit(Hash(id), 1, 1)) ++n;
      ++at[n];
    }
    double chi = 0, left = 1;
    int cells = 0, rest = m;
    for (int n = 1; n <= most && m * left * p >= 10; ++n) {
      const double expected = m * left * p;
      chi += (at[n] - expected) * (at[n] - expected) / expected;
      left *= 1 - p;
      rest -= at[n];
      ++cells;
      // By its n-th sight: 1 - (1 - p)^n, within four standard deviations.
      const double share = 1 - static_cast<double>(rest) / m;
      CHECK(std::abs(share - (1 - left)) <= 4 * std::sqrt(left * (1 - left) / m));
    }
    if (m * left >= 1) chi += (rest - m * left) * (rest - m * left) / (m * left);
    // 99.9 % of a chi-square of `cells` degrees of freedom (Wilson and Hilferty)
    const double h = 2.0 / (9 * cells);
    CHECK(chi < cells * std::pow(1 - h + 3.09 * std::sqrt(h), 3));
  }
}

// The lines are the state: copied in the middle of a stream, the copy decides everything as the original does.
void TestLinesAreTheWholeState() {
  for (const AdmissionConfig& config : {ByCount(3, 1000), AdmissionConfig{1, 0.3, 0, 9}}) {
    Admission original(config, 4), copy(config, 4);
    std::mt19937_64 random(3);
    std::vector<uint64_t> ids(3000);
    for (auto& id : ids) id = random();
    const auto see = [&](Admission& admission, uint64_t seed, uint32_t tick) {
      std::mt19937_64 pick(seed);
      std::vector<bool> decided;
      for (int i = 0; i < 5000; ++i) decided.push_back(admission.Admit(ids[pick() % ids.size()], 1 + pick() % 2, tick));
      return decided;
    };
    see(original, 1, 7);
    size_t carried = 0;
    for (size_t i = 0; i < original.lines(); ++i) {
      if (original.At(i).tick == 0) continue;  // never changed
      std::memcpy(&copy.At(i), &original.At(i), kLine);
      ++carried;
    }
    CHECK(carried > 0);
    CHECK(see(original, 2, 8) == see(copy, 2, 8));
    for (size_t i = 0; i < original.lines(); ++i) CHECK_EQ(std::memcmp(&copy.At(i), &original.At(i), kLine), 0);
  }
}

void TestMemoryIsThatOfItsIds() {
  CHECK_EQ(Admission(AdmissionConfig{}, 64).bytes(), 0u);
  CHECK_EQ(Admission(ByCount(2, 1 << 20), 64).bytes() * 64, size_t{8} << 20);  // 8 bytes an id
  CHECK_EQ(Admission(ByCount(2, 1), 64).bytes(), kLine);
  Admission every(AdmissionConfig{}, 1);
  CHECK(every.Admit(1, 1, 1));
}

// In the table: not admitted reads zeros and its gradients are dropped; admitted it begins as if there were no policy.
void TestTable(size_t shards) {
  const Optimizer adagrad{.rule = Rule::kAdagrad, .start = 0.25f};
  Config config{Layout({{4, {Kind::kNormal, 0.1f}, adagrad}}, 7), shards, {}};
  Table open(config);
  config.admission = ByCount(3, 10'000);
  Table strict(config);
  const size_t n = 600;  // more than one run a shard
  std::vector<int64_t> keys(n), sights(n, 1);
  std::iota(keys.begin(), keys.end(), -300);
  for (size_t i = 0; i < n; i += 2) sights[i] = 2;
  std::vector<float> rows(n * 4), initial(n * 4), ones(4, 1.0f);
  open.Lookup(keys.data(), n, initial.data());
  const auto all_zero = [&](size_t i) {
    return std::all_of(&rows[i * 4], &rows[i * 4 + 4], [](float x) { return x == 0; });
  };
  strict.Lookup(keys.data(), n, rows.data(), sights.data());
  for (size_t i = 0; i < n; ++i) CHECK(all_zero(i));
  const auto apply = [&] {
    const float rate = 0.1f;
    return strict.Update(keys.data(), n, [&](float* const* rows, const uint32_t*, size_t m) {
      const std::vector<const float*> gradients(m, ones.data());
      config.layout.Step({rows, gradients.data(), m}, &rate);
    });
  };
  CHECK_EQ(apply(), 0u);
  CHECK_EQ(strict.stats().size, 0u);
  strict.Lookup(keys.data(), n, rows.data(), sights.data());  // the even ones were seen four times, the odd ones twice
  for (size_t i = 0; i < n; ++i) {
    if (i % 2 == 1) CHECK(all_zero(i));
    if (i % 2 == 0) CHECK_EQ(std::memcmp(&rows[i * 4], &initial[i * 4], 16), 0);
  }
  CHECK_EQ(strict.stats().size, n / 2);
  CHECK_EQ(apply(), n / 2);
  strict.Lookup(keys.data(), n, rows.data());
  CHECK_EQ(strict.stats().size, n);
  size_t lines = 0, changed = 0;
  strict.ForEachAdmissionLine([&](const AdmissionLine& line, size_t place) {
    CHECK_EQ(place, lines++);
    changed += line.tick != 0;
    CHECK_EQ(line.used(), 0u);  // who is admitted leaves the filter
  });
  CHECK_EQ(lines, shards * ((10'000 + 8 * shards - 1) / (8 * shards)));
  CHECK(changed > 0);
  // One batch with a key three times: the third sight brings its row.
  const int64_t thrice[] = {7777, 7777, 7777};
  strict.Lookup(thrice, 3, rows.data());
  CHECK(all_zero(0) && all_zero(1) && !all_zero(2));
}

// Four threads see every key once each, others read the filter's lines meanwhile: the fourth sight is counted as such.
void TestThreads() {
  Config config;
  config.layout = Layout({{4, {}, {}}}, 7);
  config.shards = 8;
  config.admission = ByCount(4, 20'000);
  Table table(config);
  const size_t n = 2000;
  std::vector<int64_t> keys(n);
  std::iota(keys.begin(), keys.end(), 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<int64_t> mine = keys;
      std::shuffle(mine.begin(), mine.end(), std::mt19937_64(t));
      std::vector<float> rows(n * 4);
      for (size_t i = 0; i < n; i += 100) table.Lookup(&mine[i], 100, &rows[i * 4]);
    });
  }
  size_t changed = 0;
  for (int i = 0; i < 20; ++i) {
    table.ForEachAdmissionLine([&](const AdmissionLine& line, size_t) { changed += line.tick != 0; });
  }
  for (auto& thread : threads) thread.join();
  CHECK(table.stats().size >= n - 5 && table.stats().size <= n);
}

}  // namespace
}  // namespace cuckoo

int main() {
  cuckoo::TestCountIsExactWithinItsError();
  cuckoo::TestZipfStream();
  cuckoo::TestAgeing();
  cuckoo::TestSightsCountSingly();
  cuckoo::TestDrawsAreFair();
  cuckoo::TestLinesAreTheWholeState();
  cuckoo::TestMemoryIsThatOfItsIds();
  cuckoo::TestTable(1);
  cuckoo::TestTable(64);
  cuckoo::TestThreads();
  std::cout << "admission: all passed" << std::endl;
}
