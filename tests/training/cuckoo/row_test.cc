// A row's parts: initializers, and the optimizers' kernels against their formulas in double.
#include "training/cuckoo/core/row.h"

#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "tests/training/cuckoo/check.h"
#include "tests/training/cuckoo/crafted.h"
#include "training/cuckoo/core/gradients.h"

namespace cuckoo {
namespace {

// Mean and spread of both kinds; the columns of a segment are the row's, wherever it begins.
void TestInitializer() {
  for (const Kind kind : {Kind::kUniform, Kind::kNormal}) {
    const Initializer init{kind, 0.5f};
    double sum = 0, squares = 0;
    const int n = 20'000;
    for (int64_t key = 0; key < n; ++key) {
      float row[6], from_second[5];
      init.Fill(Initializer::State(3, key), 0, 6, row);
      init.Fill(Initializer::State(3, key), 1, 5, from_second);
      for (int i = 0; i < 5; ++i) {
        CHECK_EQ(from_second[i], row[i + 1]);
        sum += row[i];
        squares += row[i] * row[i];
        if (kind == Kind::kUniform) CHECK(std::abs(row[i]) <= 0.5f);
      }
    }
    const double sd = kind == Kind::kUniform ? 0.5 / std::sqrt(3) : 0.5;
    CHECK(std::abs(sum / (5 * n)) < 5 * sd / std::sqrt(5.0 * n));
    CHECK(std::abs(std::sqrt(squares / (5 * n)) - sd) < 0.01);
  }
  float row[3] = {9, 9, 9};
  Initializer{Kind::kConstant, 0.25f}.Fill(1, 0, 2, row);
  Initializer{}.Fill(1, 2, 1, row + 2);
  CHECK(row[0] == 0.25f && row[1] == 0.25f && row[2] == 0);
}

// The version the machine picked gives the bits of the plain loop, at every width.
void TestAdagradVersions() {
  std::mt19937_64 random(1);
  for (size_t dim = 1; dim < 70; ++dim) {
    std::vector<float> w(dim), a(dim), g(dim);
    for (size_t i = 0; i < dim; ++i) {
      w[i] = static_cast<float>(random() % 1000) / 999;
      a[i] = static_cast<float>(random() % 1000) / 997;
      g[i] = static_cast<float>(random() % 2000) / 991 - 1;
    }
    std::vector<float> want_w = w, want_a = a;
    for (size_t i = 0; i < dim; ++i) {
      volatile float square = g[i] * g[i];
      want_a[i] += square;
      volatile float step = 0.05f * g[i];
      want_w[i] -= step / std::sqrt(want_a[i] + 1e-7f);
    }
    const Layout layout({{dim, {}, {.rule = Rule::kAdagrad, .epsilon = 1e-7f}}}, 0);
    std::vector<std::vector<float>> rows(3, w);
    for (auto& row : rows) row.insert(row.end(), a.begin(), a.end());
    float* const row[] = {rows[0].data(), rows[1].data(), rows[2].data()};
    const float* const gradient[] = {g.data(), g.data(), g.data()};
    const float rate = 0.05f;
    layout.Step({row, gradient, 3}, &rate);
    want_w.insert(want_w.end(), want_a.begin(), want_a.end());
    for (const auto& got : rows) CHECK(got == want_w);
  }
}

// A segment's step does not depend on what is beside it, nor on its width: bits equal those of one weight alone. With
// a decay, a clip and a norm that binds nothing it is the step without them.
void TestStepsOfSegments() {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  for (const Rule rule : {Rule::kSgd, Rule::kMomentum, Rule::kNesterov, Rule::kAdagrad, Rule::kAdam, Rule::kFtrl}) {
    const Optimizer optimizer{.rule = rule,
                              .start = 0.1f,
                              .epsilon = 1e-7f,
                              .beta_1 = 0.9f,
                              .beta_2 = 0.999f,
                              .l1 = 0.01f,
                              .l2 = 0.02f,
                              .shrinkage = 0.03f,
                              .beta = 0.5f};
    Optimizer loose = optimizer, clipped = optimizer;
    loose.clip_norm = 1e6f;
    clipped.clip = 0.5f;
    for (const size_t dim : {1, 5, 16, 100, 129}) {
      const Layout one({{1, {Kind::kNormal, 1}, optimizer}}, 5);
      const Layout row({{3, {}, {.rule = Rule::kSgd}},
                        {dim, {Kind::kNormal, 1}, optimizer},
                        {dim, {Kind::kNormal, 1}, loose},
                        {dim, {Kind::kNormal, 1}, clipped}},
                       5);
      CHECK_EQ(row.slot_floats(), 3 * optimizer.slot_floats(dim));
      std::vector<float> whole(row.floats()), gradient(row.dim());
      row.Begin(42, whole.data());
      for (size_t part = 2; part <= 3; ++part) std::copy_n(&whole[3], dim, &whole[3 + (part - 1) * dim]);
      std::vector<std::vector<float>> single(dim, std::vector<float>(one.floats()));
      for (size_t i = 0; i < dim; ++i) {
        one.Begin(42, single[i].data());
        single[i][0] = whole[3 + i];
      }
      for (int step = 0; step < 20; ++step) {
        for (size_t i = 0; i < dim; ++i) {
          const float g = normal(random) / 3, bounded = std::min(std::max(g, -0.5f), 0.5f);
          gradient[3 + i] = gradient[3 + dim + i] = bounded;
          gradient[3 + 2 * dim + i] = g;
          const float rate = 0.1f, *const of_one = &bounded;
          float* const single_row = single[i].data();
          one.Step({&single_row, &of_one, 1}, &rate);
        }
        const float rates[] = {0.1f, 0.1f, 0.1f, 0.1f};
        float* const whole_row = whole.data();
        const float* const of_whole = gradient.data();
        row.Step({&whole_row, &of_whole, 1}, rates);
      }
      for (size_t i = 0; i < dim; ++i) {
        for (size_t part = 0; part < 3; ++part) CHECK_EQ(whole[3 + part * dim + i], single[i][0]);
      }
    }
  }
}

std::vector<float> Values(const Gradients& gradients, size_t dim) {
  std::vector<float> values;
  for (size_t i = 0; i < gradients.size(); ++i) values.insert(values.end(), gradients[i], gradients[i] + dim);
  return values;
}

void TestGradients() {
  const std::vector<int64_t> keys = {5, -1, 5, 7, -1, 5};
  const std::vector<float> values = {1, 2, 10, 20, 3, 4, 7, 7, 30, 40, 5, 6};
  const Gradients unique(keys.data() + 1, 3, values.data() + 2, 2);
  CHECK(unique[0] == values.data() + 2 && unique[2] == values.data() + 6 && unique.size() == 3);
  Gradients summed(keys.data(), keys.size(), values.data(), 2);
  CHECK_EQ(summed.size(), 3u);
  CHECK(std::vector<int64_t>(summed.keys(), summed.keys() + 3) == (std::vector<int64_t>{5, -1, 7}));
  CHECK(Values(summed, 2) == (std::vector<float>{9, 12, 40, 60, 7, 7}));
  CHECK(summed.finite());
  const std::vector<float> odd = {1, NAN, -INFINITY, 4, INFINITY, -3e38f, 3e38f, 0, 0, 3e38f, 0, 0};
  Gradients bad(keys.data(), 2, odd.data(), 3);
  CHECK(!bad.finite());
  bad.ZeroNonfinite();
  CHECK(bad.finite());
  CHECK(Values(bad, 3) == (std::vector<float>{1, 0, 0, 4, 0, -3e38f}));
  const int64_t same[] = {9, 9};
  CHECK(!Gradients(same, 2, odd.data() + 6, 3).finite());  // finite numbers, and a sum that is not
  CHECK(Gradients(keys.data(), 0, values.data(), 2).size() == 0);
}

// However many parts there are: together they are the whole, to the bit, and each shard's keys are in one of them.
void TestPartsOfGradients() {
  std::mt19937_64 random(3);
  const size_t n = 5000, dim = 3;
  std::vector<int64_t> keys(n);
  std::vector<float> values(n * dim);
  for (auto& key : keys) key = static_cast<int64_t>(random() % 3000);
  for (auto& value : values) value = static_cast<float>(random() % 1000) / 999;
  std::map<int64_t, std::vector<float>> want;
  const Gradients whole(keys.data(), n, values.data(), dim);
  for (size_t i = 0; i < whole.size(); ++i) want[whole.keys()[i]] = {whole[i], whole[i] + dim};
  CHECK_EQ(want.size(), whole.size());
  for (const size_t parts : {2, 3, 16}) {
    size_t total = 0;
    uint64_t last = 0;
    for (size_t part = 0; part < parts; ++part) {
      const Gradients some(keys.data(), n, values.data(), dim, part, parts);
      total += some.size();
      uint64_t low = ~uint64_t{0}, high = 0;
      for (size_t i = 0; i < some.size(); ++i) {
        CHECK(want.at(some.keys()[i]) == std::vector<float>(some[i], some[i] + dim));
        low = std::min(low, Hash(some.keys()[i]));
        high = std::max(high, Hash(some.keys()[i]));
      }
      CHECK(low > last);  // ranges of the hash, as shards are
      last = high;
    }
    CHECK_EQ(total, want.size());
  }
}

// All keys of a batch may be crafted to be of one part.
void TestKeysOfOnePart() {
  constexpr size_t n = 1100;
  std::vector<int64_t> keys(n);
  const std::vector<float> values(n, 1);
  for (size_t i = 0; i < n; ++i) keys[i] = KeyOf(i);
  CHECK_EQ(Gradients(keys.data(), n, values.data(), 1, 0, 3).size(), n);
  CHECK_EQ(Gradients(keys.data(), n, values.data(), 1, 1, 3).size(), 0u);
}

}  // namespace
}  // namespace cuckoo

int main() {
  cuckoo::TestInitializer();
  cuckoo::TestAdagradVersions();
  cuckoo::TestStepsOfSegments();
  cuckoo::TestGradients();
  cuckoo::TestPartsOfGradients();
  cuckoo::TestKeysOfOnePart();
  std::cout << "row: all passed" << std::endl;
}
