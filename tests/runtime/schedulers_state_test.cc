// A solver saved between two steps and restored into a new scheduler goes on with the same bits.
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "backends/error.h"
#include "runtime/schedulers/scheduler.h"
#include "tests/runtime/scheduler_configs.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

// Every class, and of each every option that changes what it does.
std::vector<Json> AllSolvers() {
  std::vector<Json> all = {Euler(1.0), Euler(5.0)};
  for (int order : {1, 2, 3}) {
    for (const char* type : {"bh1", "bh2"}) {
      for (const Json& off : {Json::array(), Json{0}, Json{1, 2}, Json{0, 1, 2, 3, 4, 5, 6}}) {
        all.push_back(
            UniPc({{"solver_order", order}, {"solver_type", type}, {"disable_corrector", off}}));
      }
    }
  }
  return all;
}

at::Tensor Noise() {
  return at::sin(at::arange(0, 3 * 2 * 5 * 7, at::kFloat) * 12.9898).view({1, 3, 2, 5, 7}) * 1.7;
}

// A model whose output depends on all that it is given, laid out as it likes.
at::Tensor Output(const at::Tensor& x, double t, at::ScalarType dtype) {
  const at::Tensor mixed = at::tanh(x.to(at::kFloat) * 1.3 + t / 700) + x.to(at::kFloat).roll(1, 4);
  return mixed.to(dtype).transpose(3, 4).contiguous().transpose(3, 4);
}

at::Tensor StepOf(Scheduler* scheduler, int64_t i, const at::Tensor& x, at::ScalarType dtype) {
  const c10::InferenceMode guard;
  return scheduler->Step(Output(x, scheduler->timesteps()[static_cast<size_t>(i)], dtype), i, x);
}

// As a file would give it back.
SolverState Copied(SolverState state) {
  for (auto& [name, tensor] : state.tensors) tensor = tensor.clone(at::MemoryFormat::Contiguous);
  return state;
}

void ExpectSameFromEveryStep(const Json& config, int64_t steps, std::optional<double> shift,
                             at::ScalarType dtype) {
  SCOPED_TRACE(config.dump() + ", steps " + std::to_string(steps));
  const auto whole = Make(config);
  whole->SetTimesteps(steps, shift);
  std::vector<at::Tensor> latents = {Noise()};
  std::vector<SolverState> saved = {Copied(whole->Save())}, shared = {whole->Save()};
  for (int64_t i = 0; i < steps; ++i) {
    latents.push_back(StepOf(whole.get(), i, latents.back(), dtype));
    saved.push_back(Copied(whole->Save()));
    shared.push_back(whole->Save());
  }
  for (const auto& states : {saved, shared}) {
    for (int64_t k = 0; k <= steps; ++k) {
      const auto part = whole->Clone();
      part->SetTimesteps(steps, shift);
      at::Tensor x = latents[static_cast<size_t>(k)].clone();
      part->Restore(states[static_cast<size_t>(k)], x);
      for (int64_t i = k; i < steps; ++i) {
        x = StepOf(part.get(), i, x, dtype);
        ASSERT_TRUE(at::equal(x, latents[static_cast<size_t>(i + 1)]))
            << "saved before step " << k << ", differs after step " << i;
      }
      EXPECT_THROW(StepOf(part.get(), 0, x, dtype), Error);
    }
  }
}

TEST(SolverStateTest, EverySolverGoesOnFromEveryStepWithTheSameBits) {
  for (const Json& config : AllSolvers()) {
    for (int64_t steps : {1, 2, 3, 7}) {
      ExpectSameFromEveryStep(config, steps, std::nullopt, at::kFloat);
    }
  }
}

TEST(SolverStateTest, AlsoWithAnotherShiftAndAModelInBfloat16) {
  for (const Json& config : AllSolvers()) {
    const bool euler = config.at("_class_name") != "UniPCMultistepScheduler";
    ExpectSameFromEveryStep(config, 5, 1.5, euler ? at::kFloat : at::kBFloat16);
    ExpectSameFromEveryStep(config, 5, 7.0, at::kFloat);
  }
}

TEST(SolverStateTest, EulersLatentsInBfloat16GoOnAsTheirFloat32Values) {
  const auto whole = Make(Euler(3.0));
  whole->SetTimesteps(4);
  at::Tensor x = Noise();
  for (int64_t i = 0; i < 2; ++i) x = StepOf(whole.get(), i, x, at::kBFloat16);
  const auto part = whole->Clone();
  part->SetTimesteps(4);
  at::Tensor y = x.to(at::kFloat);
  part->Restore(whole->Save(), y);
  for (int64_t i = 2; i < 4; ++i) {
    x = StepOf(whole.get(), i, x, at::kBFloat16);
    y = StepOf(part.get(), i, y, at::kBFloat16);
    EXPECT_TRUE(at::equal(x, y));
  }
}

TEST(SolverStateTest, ARestoreReplacesTheHistoryOfTheSchedulerItself) {
  for (const Json& config : {UniPc({{"solver_order", 3}}), Euler(3.0)}) {
    const auto scheduler = Make(config);
    scheduler->SetTimesteps(6);
    at::Tensor x = Noise();
    for (int64_t i = 0; i < 3; ++i) x = StepOf(scheduler.get(), i, x, at::kFloat);
    const SolverState state = scheduler->Save();
    const auto finish = [&] {
      at::Tensor y = x;
      for (int64_t i = 3; i < 6; ++i) y = StepOf(scheduler.get(), i, y, at::kFloat);
      return y;
    };
    const at::Tensor once = finish();
    scheduler->Restore(state, x);
    EXPECT_TRUE(at::equal(finish(), once));
  }
}

// After three of six steps.
struct Saved {
  Saved() : scheduler(Make(UniPc({{"solver_order", 3}}))), x(Noise()) {
    scheduler->SetTimesteps(6);
    for (int64_t i = 0; i < 3; ++i) x = StepOf(scheduler.get(), i, x, at::kFloat);
    state = Copied(scheduler->Save());
  }

  // What a new scheduler says to the state, after checking that it stayed as it was.
  std::string Refusal(const Json& config = UniPc({{"solver_order", 3}}), int64_t steps = 6,
                      std::optional<double> shift = std::nullopt) const {
    const auto other = Make(config);
    other->SetTimesteps(steps, shift);
    const auto untouched = other->Clone();
    untouched->SetTimesteps(steps, shift);
    try {
      other->Restore(state, x);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), StatusCode::kInvalidArgument);
      EXPECT_TRUE(at::equal(StepOf(other.get(), 0, Noise(), at::kFloat),
                            StepOf(untouched.get(), 0, Noise(), at::kFloat)));
      return e.what();
    }
    return "accepted";
  }

  std::unique_ptr<Scheduler> scheduler;
  at::Tensor x;
  SolverState state;
};

TEST(SolverStateTest, AnotherSolverIsRefusedByName) {
  const Saved saved;
  EXPECT_EQ(saved.Refusal(), "accepted");
  EXPECT_THAT(saved.Refusal(Euler(3.0)), HasSubstr("Euler"));
  EXPECT_THAT(saved.Refusal(UniPc({{"solver_order", 2}})), HasSubstr("order 2"));
  const auto with = [](Json more) {
    more["solver_order"] = 3;
    return UniPc(more);
  };
  EXPECT_THAT(saved.Refusal(with({{"solver_type", "bh1"}})), HasSubstr("bh1"));
  EXPECT_THAT(saved.Refusal(with({{"disable_corrector", {4}}})), HasSubstr("[ 4 ]"));
  EXPECT_THAT(saved.Refusal(with({{"num_train_timesteps", 500}})), HasSubstr("500"));
}

TEST(SolverStateTest, AnotherScheduleIsRefused) {
  const Saved saved;
  const Json config = UniPc({{"solver_order", 3}});
  EXPECT_THAT(saved.Refusal(config, 7), HasSubstr("noise levels"));
  EXPECT_THAT(saved.Refusal(config, 2), HasSubstr("from 0 to 2"));
  EXPECT_THAT(saved.Refusal(config, 6, 4.0), HasSubstr("noise levels"));
}

TEST(SolverStateTest, AStateThatIsNotWhatItsStepNeedsIsRefused) {
  const auto refusal = [](const std::function<void(SolverState*)>& damage) {
    Saved saved;
    damage(&saved.state);
    return saved.Refusal();
  };
  const auto set = [](const std::string& name, const at::Tensor& x) {
    return [=](SolverState* s) { s->tensors[name] = x; };
  };
  EXPECT_THAT(refusal([](SolverState* s) { s->tensors.erase("clean.2"); }), HasSubstr("clean.2"));
  EXPECT_THAT(refusal([](SolverState* s) { s->tensors.erase("last_sample"); }),
              HasSubstr("last_sample"));
  EXPECT_THAT(refusal([](SolverState* s) { s->tensors.erase("sigmas"); }),
              HasSubstr("noise levels"));
  EXPECT_THAT(refusal([](SolverState* s) { s->next_step = 2; }), HasSubstr("clean.2"));
  EXPECT_THAT(refusal([](SolverState* s) { s->next_step = 0; }), HasSubstr("step 0"));
  EXPECT_THAT(refusal([](SolverState* s) { s->next_step = -1; }), HasSubstr("-1"));
  EXPECT_THAT(refusal([](SolverState* s) { s->next_step = int64_t{1} << 62; }), HasSubstr("6"));
  EXPECT_THAT(refusal(set("clean.1", at::zeros({1, 3, 2, 5, 8}))), HasSubstr("[1, 3, 2, 5, 8]"));
  EXPECT_THAT(refusal(set("clean.1", Noise().to(at::kHalf))), HasSubstr("clean.1"));
  EXPECT_THAT(refusal(set("clean.1", at::Tensor())), HasSubstr("clean.1"));
  EXPECT_THAT(refusal(set("more", Noise())), HasSubstr("more"));
  EXPECT_THAT(refusal(set("sigmas", at::zeros({7}))), HasSubstr("noise levels"));
  EXPECT_THAT(refusal(set("sigmas", at::zeros({7}, at::kDouble))), HasSubstr("noise levels"));
}

}  // namespace
}  // namespace denoised
