#include "runtime/engine/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "tests/median.h"

namespace denoised {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;
// What a unit of so many rows and tokens truly takes.
using Law = std::function<double(double rows, double tokens)>;

// As a transformer has them: linear layers, and attention over all pairs.
UnitKey Step(int64_t tokens, const std::string& backend = "FLASH_ATTN") {
  const double n = static_cast<double>(tokens);
  return {.model = "wan",
          .kind = "step",
          .group = std::to_string(tokens),
          .backend = backend,
          .multiply_adds = n * 7e6 + n * n * 12e3,
          .tokens = n};
}

// A shared machine: everything a little off, and one time in fifty stalled.
class Machine {
 public:
  Machine(Law law, uint64_t seed) : law_(std::move(law)), random_(seed) {}

  double True(int64_t rows, int64_t tokens) const {
    return law_(static_cast<double>(rows), static_cast<double>(tokens));
  }
  double Measured(int64_t rows, int64_t tokens) {
    const double noise = std::exp(0.06 * std::normal_distribution<double>()(random_));
    const bool stalled = std::uniform_int_distribution<int>(0, 49)(random_) == 0;
    return True(rows, tokens) * noise * (stalled ? 5 : 1);
  }
  void Teach(CostModel* model, int64_t rows, int64_t tokens, int times) {
    for (int i = 0; i < times; ++i) model->Observe(Step(tokens), rows, Measured(rows, tokens));
  }

 private:
  const Law law_;
  std::mt19937_64 random_;
};

double ErrorOf(const CostModel& model, const Machine& machine, int64_t rows, int64_t tokens) {
  const double truth = machine.True(rows, tokens);
  return std::abs(model.Seconds(Step(tokens), rows) - truth) / truth;
}

// Median error on shapes that never ran, after a few others did.
double UnseenError(const Law& law, uint64_t seed) {
  Machine machine(law, seed);
  CostModel model;
  for (int64_t tokens : {96, 320, 1560, 3120}) {
    machine.Teach(&model, 1, tokens, 12);
    machine.Teach(&model, 2, tokens, 12);
  }
  std::vector<double> errors;
  for (int64_t tokens : {160, 240, 520, 780, 1040, 2080, 2600, 4680, 6240}) {
    EXPECT_TRUE(model.known(Step(tokens)));
    for (int64_t rows : {1, 2, 4}) errors.push_back(ErrorOf(model, machine, rows, tokens));
  }
  return Median(errors);
}

TEST(CostModelTest, PredictsShapesThatNeverRanByEveryLawOfATransformer) {
  const std::vector<std::pair<const char*, Law>> laws = {
      {"linear", [](double rows, double n) { return rows * n * 4e-4; }},
      {"overhead", [](double rows, double n) { return 0.05 + rows * n * 1e-4; }},
      {"attention", [](double rows, double n) { return rows * (n * 2e-4 + n * n * 3e-7); }},
      {"all",
       [](double rows, double n) { return 0.01 + rows * (0.002 + n * 2e-4 + n * n * 1e-7); }}};
  for (const auto& [name, law] : laws) {
    std::vector<double> errors;
    for (uint64_t seed = 1; seed <= 9; ++seed) errors.push_back(UnseenError(law, seed));
    EXPECT_LE(Median(errors), 0.03) << name;
    EXPECT_LE(*std::max_element(errors.begin(), errors.end()), 0.08) << name;
  }
}

TEST(CostModelTest, OneShapeIsEnoughToSpeakOfAnother) {
  CostModel model;
  Machine machine([](double rows, double n) { return rows * (n * 7e6 + n * n * 12e3) * 1e-11; }, 3);
  machine.Teach(&model, 1, 320, 20);
  EXPECT_LE(ErrorOf(model, machine, 1, 1560), 0.1);
  EXPECT_LE(ErrorOf(model, machine, 1, 96), 0.1);
}

TEST(CostModelTest, StallsAndAColdFirstCallDoNotMoveATime) {
  CostModel model;
  const UnitKey key = Step(96);
  model.Observe(key, 1, 3.0);
  model.Observe(key, 1, 0.1);
  EXPECT_DOUBLE_EQ(model.Seconds(key, 1), 0.1);
  for (int i = 0; i < 30; ++i) model.Observe(key, 1, i % 5 == 0 ? 2.0 : 0.1);
  EXPECT_NEAR(model.Seconds(key, 1), 0.1, 1e-9);
}

TEST(CostModelTest, ForgetsWhatTheMachineWas) {
  CostModel model;
  const UnitKey key = Step(96);
  for (int i = 0; i < 1000; ++i) model.Observe(key, 1, 0.1);
  for (int i = 0; i < 40; ++i) model.Observe(key, 1, 0.3);
  EXPECT_NEAR(model.Seconds(key, 1), 0.3, 1e-9);
}

TEST(CostModelTest, BackendsModelsAndKindsHaveTimesOfTheirOwn) {
  CostModel model;
  UnitKey other = Step(96, "TORCH_SDPA");
  model.Observe(Step(96), 1, 0.1);
  model.Observe(other, 1, 0.4);
  EXPECT_DOUBLE_EQ(model.Seconds(Step(96), 1), 0.1);
  EXPECT_DOUBLE_EQ(model.Seconds(other, 1), 0.4);
  UnitKey chunk = Step(96);
  chunk.kind = "decode";
  EXPECT_FALSE(model.known(chunk));
}

TEST(CostModelTest, WhereNothingRanThereIsAGuessAndItSaysSo) {
  const CostModel model;
  EXPECT_FALSE(model.known(Step(96)));
  EXPECT_GT(model.Seconds(Step(96), 1), 0);
  EXPECT_GT(model.Seconds(Step(6240), 1), model.Seconds(Step(96), 1));
  EXPECT_GT(model.Seconds({}, 1), 0);
  EXPECT_EQ(model.WorthRows(Step(96), 16), 1);
}

TEST(CostModelTest, ShapesOfUnknownSizeHaveATimeToo) {
  CostModel model;
  UnitKey nameless = Step(96);
  nameless.group = "?";
  nameless.multiply_adds = nameless.tokens = 0;
  for (int i = 0; i < 10; ++i) {
    for (int64_t tokens : {96, 320, 1560}) {
      model.Observe(Step(tokens), 1, static_cast<double>(tokens) * 1e-3);
    }
  }
  const double guess = model.Seconds(nameless, 1);
  EXPECT_TRUE(std::isfinite(guess) && guess > 0);
  model.Observe(nameless, 1, 0.3);
  nameless.group = "another";
  EXPECT_TRUE(std::isfinite(model.Seconds(nameless, 2)));
  EXPECT_GT(model.Seconds(nameless, 2), 0);
  EXPECT_TRUE(std::isfinite(model.Seconds(Step(780), 1)));
}

TEST(CostModelTest, TimesThatAreNoneAreIgnored) {
  CostModel model;
  for (double seconds : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    model.Observe(Step(96), 1, seconds);
  }
  model.Observe(Step(96), 0, 1.0);
  EXPECT_EQ(model.size(), 0u);
}

TEST(CostModelTest, BetweenAndBeyondTheNumbersOfRowsThatRanLiesALine) {
  CostModel model;
  const UnitKey key = Step(96);
  for (int i = 0; i < 8; ++i) {
    model.Observe(key, 2, 0.14);
    model.Observe(key, 6, 0.22);
  }
  EXPECT_NEAR(model.Seconds(key, 4), 0.18, 1e-9);
  EXPECT_NEAR(model.Seconds(key, 1), 0.12, 1e-3);
  EXPECT_NEAR(model.Seconds(key, 10), 0.30, 1e-3);
}

// Rows that WorthRows comes to when it is asked and obeyed for a while.
int64_t SettledRows(const Law& law, int64_t most, uint64_t seed, double most_seconds = 1e9) {
  CostModel model;
  Machine machine(law, seed);
  double seconds = 0;
  int64_t rows = 0;
  for (int i = 0; i < 400 && seconds < most_seconds; ++i) {
    rows = model.WorthRows(Step(96), most);
    const double took = machine.Measured(rows, 96);
    seconds += took;
    model.Observe(Step(96), rows, took);
  }
  return rows;
}

TEST(CostModelTest, TakesAllRowsWhereTheyShareWhatACallCosts) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    EXPECT_EQ(SettledRows([](double rows, double) { return 0.02 + 0.004 * rows; }, 16, seed), 16);
    EXPECT_EQ(SettledRows([](double rows, double) { return 0.02 + 0.004 * rows; }, 5, seed), 5);
  }
}

TEST(CostModelTest, TakesAllWhereRowsShareNothingAndLoseNothing) {
  EXPECT_EQ(SettledRows([](double rows, double) { return 0.01 + 0.1 * rows; }, 16, 1), 16);
}

TEST(CostModelTest, StopsWhereFurtherRowsCostMore) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    EXPECT_LE(SettledRows([](double rows, double) { return 0.1 * std::pow(rows, 1.8); }, 16, seed),
              2);
  }
}

TEST(CostModelTest, StopsWhereACacheNoLongerHoldsTheRows) {
  const Law law = [](double rows, double) {
    return 0.1 * std::max(rows, 4.0) + 0.15 * std::max(0.0, rows - 4);
  };
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const int64_t rows = SettledRows(law, 64, seed);
    EXPECT_GE(rows, 4);
    EXPECT_LE(rows, 8);
  }
}

TEST(CostModelTest, ASlowFirstTryDoesNotEndBatching) {
  CostModel model;
  const UnitKey key = Step(96);
  for (int i = 0; i < 8; ++i) model.Observe(key, 1, 0.1);
  model.Observe(key, 2, 1.0);
  EXPECT_EQ(model.WorthRows(key, 16), 2);
  for (int i = 0; i < 4; ++i) model.Observe(key, 2, 0.11);
  EXPECT_EQ(model.WorthRows(key, 16), 4);
}

TEST(CostModelTest, ARefusalToBatchIsTriedAgainAfterAWhile) {
  CostModel model;
  const UnitKey key = Step(96);
  for (int i = 0; i < 8; ++i) model.Observe(key, 2, 1.0);
  for (int i = 0; i < 8; ++i) model.Observe(key, 1, 0.1);
  EXPECT_EQ(model.WorthRows(key, 16), 1);
  for (int i = 0; i < 400; ++i) model.Observe(key, 1, 0.1);
  EXPECT_EQ(model.WorthRows(key, 16), 2);
}

TEST(CostModelTest, WhatWasLearntOutlivesTheProcess) {
  Machine machine([](double rows, double n) { return 0.01 + rows * n * 2e-4; }, 1);
  CostModel model, next;
  for (int64_t tokens : {96, 320, 1560}) {
    machine.Teach(&model, 1, tokens, 20);
    machine.Teach(&model, 4, tokens, 20);
  }
  EXPECT_EQ(next.Load(model.Save()), std::nullopt);
  EXPECT_EQ(next.size(), model.size());
  for (int64_t tokens : {96, 320, 1560, 780}) {
    for (int64_t rows : {1, 2, 4, 8}) {
      EXPECT_NEAR(next.Seconds(Step(tokens), rows) / model.Seconds(Step(tokens), rows), 1, 0.02);
    }
    EXPECT_EQ(next.WorthRows(Step(tokens), 16), model.WorthRows(Step(tokens), 16));
  }
  // What it brought weighs no more than what comes.
  for (int i = 0; i < 40; ++i) next.Observe(Step(96), 1, 7.0);
  EXPECT_NEAR(next.Seconds(Step(96), 1), 7.0, 1e-9);
}

TEST(CostModelTest, NamesThatAreNotTextAreKept) {
  CostModel model, next;
  UnitKey key = Step(96);
  key.model = "a\"\n\xff";
  model.Observe(key, 1, 0.5);
  EXPECT_EQ(next.Load(model.Save()), std::nullopt);
  EXPECT_EQ(next.size(), 1u);
}

TEST(CostModelTest, GarbageIsIgnoredAndNamed) {
  CostModel model;
  for (const char* text :
       {"", "{", "[]", "null", "\xff\xfe", "{\"version\":2,\"units\":[]}",
        "{\"version\":\"1\",\"units\":[]}", "{\"version\":1}", "{\"version\":1,\"units\":{}}"}) {
    const auto why = model.Load(text);
    ASSERT_TRUE(why) << text;
    EXPECT_THAT(*why, HasSubstr("measured unit times"));
  }
  EXPECT_EQ(model.size(), 0u);
}

TEST(CostModelTest, ADamagedUnitIsLeftOutAndTheOthersTaken) {
  CostModel good;
  good.Observe(Step(96), 1, 0.5);
  good.Observe(Step(320), 1, 0.7);
  const auto spoil = [&](const std::function<void(Json&)>& change) {
    Json all = Json::parse(good.Save());
    change(all["units"][0]);
    CostModel model;
    const auto why = model.Load(all.dump());
    EXPECT_EQ(model.size(), 1u);
    EXPECT_DOUBLE_EQ(model.Seconds(Step(320), 1), 0.7);
    EXPECT_THAT(why.value_or(""), HasSubstr("units: 1 of 2"));
  };
  spoil([](Json& unit) { unit = 3; });
  spoil([](Json& unit) { unit.erase("group"); });
  spoil([](Json& unit) { unit["model"] = std::string(100000, 'x'); });
  spoil([](Json& unit) { unit["tokens"] = -1; });
  spoil([](Json& unit) { unit["multiply_adds"] = "many"; });
  spoil([](Json& unit) { unit["times"] = Json::array(); });
  spoil([](Json& unit) { unit["times"][0] = {1, 0.5}; });
  spoil([](Json& unit) { unit["times"][0][0] = 0; });
  spoil([](Json& unit) { unit["times"][0][0] = 1e30; });
  spoil([](Json& unit) { unit["times"][0][1] = -0.5; });
  spoil([](Json& unit) { unit["times"][0][1] = 1e300; });
  spoil([](Json& unit) { unit["times"][0][2] = 0; });
  spoil([](Json& unit) { unit["times"][0][2] = uint64_t{18446744073709551615u}; });
}

TEST(CostModelTest, TheKeysUsedLeastLatelyAreForgotten) {
  CostModel model(3);
  for (int64_t tokens : {96, 320, 1560}) model.Observe(Step(tokens), 1, 0.1);
  model.Observe(Step(96), 1, 0.1);
  model.Observe(Step(780), 1, 0.2);
  EXPECT_EQ(model.size(), 3u);
  CostModel next(2);
  EXPECT_EQ(next.Load(model.Save()), std::nullopt);
  EXPECT_EQ(next.size(), 2u);
  EXPECT_DOUBLE_EQ(next.Seconds(Step(780), 1), 0.2);
}

TEST(CostModelTest, ManyNumbersOfRowsAreBounded) {
  CostModel model;
  for (int64_t rows = 1; rows <= 5000; ++rows) model.Observe(Step(96), rows, 0.1);
  EXPECT_LE(Json::parse(model.Save())["units"][0]["times"].size(), 64u);
}

TEST(CostModelTest, IsReadAndWrittenFromSeveralThreads) {
  CostModel model(8);
  std::vector<std::thread> readers;
  std::atomic<bool> done = false;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!done) {
        EXPECT_GT(model.Seconds(Step(96), 2), 0);
        model.WorthRows(Step(96), 8);
        model.known(Step(320));
        CostModel().Load(model.Save());
      }
    });
  }
  for (int64_t i = 0; i < 2000; ++i) model.Observe(Step(96 + 8 * (i % 20)), 1 + i % 4, 0.1);
  done = true;
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace denoised
