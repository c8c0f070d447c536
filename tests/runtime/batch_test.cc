// Runs that share forwards: each has the bits that it has alone, whoever joins, leaves, fails or is
// saved and restored on the way. The model that ships, at three sizes, in both dtypes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "backends/intra_op.h"
#include "backends/stop_point.h"
#include "runtime/attention/attention_planner.h"
#include "runtime/attention/call_guard.h"
#include "runtime/attention/forward_context.h"
#include "runtime/attention/shadows.h"
#include "runtime/caught.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/request_check.h"
#include "tests/runtime/drive.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Keeps what the engine would be told of forwards.
class ForwardObserver : public Observer {
 public:
  struct Seen {
    AttnBackend self;
    Branch branch;
    int64_t rows, tokens;
  };
  void OnForward(const std::string&, AttnBackend self, Branch branch, int64_t rows, int64_t tokens,
                 double seconds) override {
    forwards.push_back({self, branch, rows, tokens});
    EXPECT_GE(seconds, 0);
  }
  std::vector<Seen> forwards;
};

struct Size {
  const char* name;
  int64_t width, height, frames;
  int64_t tokens;
};
constexpr Size kSizes[] = {
    {"96", 32, 64, 9, 96}, {"320", 64, 64, 17, 320}, {"1560", 416, 240, 1, 1560}};

// A model, loaded once for each dtype and device.
class Model {
 public:
  static Model& Of(const std::string& dtype, const std::string& device = "cpu") {
    static std::map<std::pair<std::string, std::string>, std::unique_ptr<Model>> models;
    std::unique_ptr<Model>& model = models[{dtype, device}];
    if (!model) model.reset(new Model(dtype, device));
    return *model;
  }
  Pipeline& pipeline() { return *loaded_.pipelines.front(); }

 private:
  Model(const std::string& dtype, const std::string& device) : logger_(stderr, LogLevel::kError) {
    RepositoryOptions options;
    options.repository = DENOISED_SHAPES;
    options.device = device;
    options.dtype = dtype;
    loaded_ = LoadPipelines(options, &policy_, &observer_, &logger_);
  }
  SelectionPolicy policy_{std::nullopt};
  Observer observer_;
  Logger logger_;
  LoadedRepository loaded_;
};

struct Wishes {
  std::string prompt = "a red circle moving left";
  Size size = kSizes[0];
  int64_t seed = 1, steps = 3, text = 32;
  double guidance = 1, shift = 3;
  AttentionOptions attention;
  LinearNumerics linear = LinearNumerics::kPacked;
  std::string tenant = "";
};

// A job on its way, with all that it borrows.
class Job {
 public:
  Job(Pipeline* pipeline, const Wishes& wishes, Observer* observer, std::string saved = "")
      : pipeline_(pipeline), wishes_(wishes), observer_(observer) {
    Start(std::move(saved));
  }

  void Start(std::string saved) {
    GenerationRequest request;
    request.prompt = wishes_.prompt;
    request.width = wishes_.size.width;
    request.height = wishes_.size.height;
    request.num_frames = wishes_.size.frames;
    request.num_inference_steps = wishes_.steps;
    request.guidance_scale = wishes_.guidance;
    request.flow_shift = wishes_.shift;
    request.max_sequence_length = wishes_.text;
    request.seed = wishes_.seed;
    ResolvedParameters parameters =
        ResolveRequest(request, pipeline_->info().defaults, pipeline_->rules());
    parameters.linear = wishes_.linear;
    planner = std::make_unique<AttentionPlanner>(
        pipeline_->planner_setting(), PlannerSubject{wishes_.attention, wishes_.tenant}, observer_);
    run = pipeline_->NewRun({wishes_.prompt,
                             wishes_.prompt,
                             parameters,
                             {},
                             planner.get(),
                             observer_,
                             1,
                             RunRequest::Decode::kNothing,
                             std::move(saved)});
  }
  // As a server that ended and began again would have it.
  void Restart() { Start(run->Save()); }

  std::string Latents() const { return run->Latents().data; }
  std::string DrawnAlone() {
    DriveTo(UnitKind::kDone, pipeline_, run.get());
    return Latents();
  }

  std::unique_ptr<AttentionPlanner> planner;
  std::unique_ptr<GenerationRun> run;

 private:
  Pipeline* const pipeline_;
  const Wishes wishes_;
  Observer* const observer_;
};

HostTensor Random(std::vector<int64_t> shape, std::mt19937* random) {
  int64_t numbers = 1;
  for (int64_t size : shape) numbers *= size;
  std::normal_distribution<float> normal;
  HostTensor tensor{DType::kFloat32, std::move(shape), {}};
  for (int64_t i = 0; i < numbers; ++i) {
    const float value = normal(*random);
    tensor.data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return tensor;
}

DenoiseRequest RandomCall(const Size& size, LinearNumerics linear, std::mt19937* random) {
  const int64_t rows = 1 + (*random)() % 2, text = 1 + (*random)() % 40;
  DenoiseRequest request;
  request.latents =
      Random({rows, 8, (size.frames - 1) / 4 + 1, size.height / 4, size.width / 4}, random);
  request.timestep = {DType::kInt64, {rows}, {}};
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t value = (*random)() % 1000;
    request.timestep.data.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  request.encoder_hidden_states = Random({rows, text, 128}, random);
  if ((*random)() % 2 == 0) {
    request.guidance_scale = 2;
    request.negative_encoder_hidden_states = Random({rows, text, 128}, random);
  }
  request.numerics.linear = linear;
  return request;
}

// A call on its way.
struct Call {
  Call(Pipeline* pipeline, DenoiseRequest asked, Observer* observer)
      : request(std::move(asked)),
        planner(std::make_unique<AttentionPlanner>(pipeline->planner_setting(),
                                                   PlannerSubject{request.attention}, observer)),
        run(pipeline->NewDenoiseRun(
            request, pipeline->EstimateDenoise(request, planner->CostNow()).units[0].unit,
            planner.get(), observer)) {}
  const DenoiseRequest request;
  std::unique_ptr<AttentionPlanner> planner;
  std::unique_ptr<DenoiseRun> run;
};

std::string AnswerAlone(Pipeline* pipeline, const DenoiseRequest& request, Observer* observer) {
  Call call(pipeline, request, observer);
  DoNext(pipeline, call.run.get());
  return call.run->TakeResult().tensor.data;
}

Wishes RandomWishes(const Size& size, LinearNumerics linear, std::mt19937* random) {
  static const std::vector<std::pair<std::optional<AttnBackend>, std::string>> kBackends = {
      {std::nullopt, ""},
      {AttnBackend::kSageAttn, ""},
      {AttnBackend::kTorchSdpa, ""},
      {AttnBackend::kVideoSparseAttn, R"({"tile":[1,2,4],"sparsity":0.5})"},
      {AttnBackend::kSlidingTileAttn, R"({"tile":[1,4,4],"dense_first_steps":1})"},
      {AttnBackend::kVmobaAttn, ""},
      {AttnBackend::kSlaAttn, R"({"ratio":0.5,"dense_layers":[1,2]})"}};
  const char* const kPrompts[] = {"a red circle moving left", "a blue square moving up",
                                  "a green triangle", "", "two words"};
  Wishes wishes;
  wishes.size = size;
  wishes.linear = linear;
  wishes.prompt = kPrompts[(*random)() % 5];
  wishes.seed = (*random)() % 1000;
  wishes.steps = 2 + (*random)() % 3;
  wishes.text = 16 + (*random)() % 3 * 16;
  wishes.guidance = (*random)() % 2 == 0 ? 1 : 2.5;
  wishes.shift = 1 + (*random)() % 4;
  const auto& [backend, parameters] = kBackends[(*random)() % kBackends.size()];
  wishes.attention.backend = backend;
  wishes.attention.parameters_json = parameters;
  // Other backends in some layers, at some steps.
  for (size_t rules = (*random)() % 3; rules > 0; --rules) {
    const auto layer = static_cast<int64_t>((*random)() % 2);
    const auto step = static_cast<int64_t>((*random)() % 2);
    AttentionRule rule;
    if ((*random)() % 2 == 0) rule.where.layers = Interval{layer, layer};
    if ((*random)() % 2 == 0) rule.where.steps = Interval{step, step + 1};
    const auto& [other, its] = kBackends[1 + (*random)() % (kBackends.size() - 1)];
    rule.backend = *other;
    rule.parameters_json = its;
    wishes.attention.schedule.push_back(rule);
  }
  return wishes;
}

struct Computes {
  std::string name, device;
  LinearNumerics linear;
};

// Of this machine.
std::vector<Computes> Ways() {
  std::vector<Computes> ways = {{"packed", "cpu", LinearNumerics::kPacked},
                                {"exact", "cpu", LinearNumerics::kExact}};
  if (!Caught([] { QueryCuda(0); })) ways.push_back({"cuda", "cuda:0", LinearNumerics::kExact});
  return ways;
}

class Batches : public testing::TestWithParam<std::tuple<std::string, Size, Computes>> {
 protected:
  void TearDown() override { SetIntraOpThreads(2); }
  const Computes& way() const { return std::get<2>(GetParam()); }
  LinearNumerics linear() const { return way().linear; }
  // Of a step; the bits of LibTorch's products depend on it.
  void AnyThreads(std::mt19937* random) const {
    const int threads = 1 + static_cast<int>((*random)() % 2);
    if (linear() != LinearNumerics::kExact) SetIntraOpThreads(threads);
  }
  Pipeline* pipeline() { return &Model::Of(std::get<0>(GetParam()), way().device).pipeline(); }
  const Size& size() const { return std::get<1>(GetParam()); }
  // Fewer where a step takes long.
  size_t Runs(std::mt19937* random) const {
    const size_t most = size().tokens > 1000 ? 3 : size().tokens > 300 ? 4 : 8;
    return 2 + (*random)() % (most - 1);
  }
  ForwardObserver observer_;
};

// Jobs come, step in random company, are restarted and go.
TEST_P(Batches, JobsThatShareForwardsHaveTheLatentsThatTheyHaveAlone) {
  for (const uint32_t seed : {1u, 2u}) {
    if (seed > 1 && size().tokens > 1000) continue;  // a step takes long
    std::mt19937 random(seed);
    std::vector<Wishes> wishes;
    std::vector<std::string> alone;
    for (size_t i = Runs(&random); i > 0; --i) {
      wishes.push_back(RandomWishes(size(), linear(), &random));
      AnyThreads(&random);
      alone.push_back(Job(pipeline(), wishes.back(), &observer_).DrawnAlone());
    }
    std::map<size_t, std::unique_ptr<Job>> under_way;
    size_t arrived = 0, done = 0;
    while (done < wishes.size()) {
      AnyThreads(&random);
      if (arrived < wishes.size() && (under_way.empty() || random() % 2 == 0)) {
        under_way[arrived] = std::make_unique<Job>(pipeline(), wishes[arrived], &observer_);
        ++arrived;
      }
      std::vector<denoised::Run*> company;
      for (auto& [i, job] : under_way) {
        if (random() % 6 == 0) job->Restart();
        DriveTo(UnitKind::kStep, pipeline(), job->run.get());
        if (random() % 4 != 0) company.push_back(job->run.get());
      }
      std::shuffle(company.begin(), company.end(), random);
      for (const auto& error : pipeline()->Step(company)) EXPECT_FALSE(error) << error->what();
      for (auto it = under_way.begin(); it != under_way.end();) {
        if (it->second->run->Next().kind != UnitKind::kDone) {
          ++it;
          continue;
        }
        EXPECT_TRUE(it->second->Latents() == alone[it->first]) << "job " << it->first;
        it = under_way.erase(it);
        ++done;
      }
    }
  }
}

TEST_P(Batches, CallsAreRowsLikeAnyOther) {
  std::mt19937 random(11);
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<std::string> alone;
  std::vector<denoised::Run*> company;
  for (int i = 0; i < (size().tokens > 1000 ? 2 : 4); ++i) {
    DenoiseRequest request = RandomCall(size(), linear(), &random);
    if (i == 1) request.attention.backend = AttnBackend::kSageAttn;
    alone.push_back(AnswerAlone(pipeline(), request, &observer_));
    calls.push_back(std::make_unique<Call>(pipeline(), std::move(request), &observer_));
    company.push_back(calls.back()->run.get());
  }
  Wishes wishes = RandomWishes(size(), linear(), &random);
  const std::string job_alone = Job(pipeline(), wishes, &observer_).DrawnAlone();
  Job job(pipeline(), wishes, &observer_);
  DriveTo(UnitKind::kStep, pipeline(), job.run.get());
  EXPECT_EQ(job.run->Next().group, company.front()->Next().group);
  company.insert(company.begin() + 1, job.run.get());
  int64_t rows = 0;
  for (const denoised::Run* run : company) rows += run->Next().rows;
  observer_.forwards.clear();
  const auto start = std::chrono::steady_clock::now();
  for (const auto& error : pipeline()->Step(company)) EXPECT_FALSE(error) << error->what();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(observer_.forwards.size(), 1u);
  EXPECT_EQ(observer_.forwards[0].rows, rows);
  EXPECT_EQ(observer_.forwards[0].tokens, rows * size().tokens);
  EXPECT_EQ(observer_.forwards[0].branch, Branch::kMixed);
  double seconds = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    const DenoiseResult result = calls[i]->run->TakeResult();
    EXPECT_TRUE(result.tensor.data == alone[i]) << "call " << i;
    seconds += result.forward_seconds;
  }
  EXPECT_LT(seconds, taken.count()) << "each has its part of the step, and the job one too";
  EXPECT_TRUE(job.DrawnAlone() == job_alone);
}

INSTANTIATE_TEST_SUITE_P(Of, Batches,
                         testing::Combine(testing::Values("float32", "bfloat16"),
                                          testing::ValuesIn(kSizes), testing::ValuesIn(Ways())),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param).name +
                                  "_" + std::get<2>(info.param).name;
                         });

class Steps : public testing::Test {
 protected:
  Pipeline* pipeline() { return &Model::Of("float32").pipeline(); }
  std::unique_ptr<Job> AtStep(const Wishes& wishes) {
    auto job = std::make_unique<Job>(pipeline(), wishes, &observer_);
    DriveTo(UnitKind::kStep, pipeline(), job->run.get());
    observer_.forwards.clear();
    return job;
  }
  std::vector<std::optional<Error>> Step(const std::vector<std::unique_ptr<Job>>& jobs) {
    std::vector<denoised::Run*> runs;
    for (const auto& job : jobs) runs.push_back(job->run.get());
    return pipeline()->Step(runs);
  }
  ForwardObserver observer_;
};

TEST_F(Steps, BothPassesOfGuidanceAreTwoRowsOfOneForward) {
  Wishes wishes;
  wishes.guidance = 2;
  std::vector<std::unique_ptr<Job>> jobs;
  jobs.push_back(AtStep(wishes));
  EXPECT_EQ(jobs[0]->run->Next().rows, 2);
  Step(jobs);
  ASSERT_EQ(observer_.forwards.size(), 1u);
  EXPECT_EQ(observer_.forwards[0].rows, 2);
  EXPECT_EQ(observer_.forwards[0].branch, Branch::kMixed);
}

TEST_F(Steps, AreOneForwardWithExactNumericsToo) {
  Wishes wishes;
  wishes.guidance = 2;
  wishes.linear = LinearNumerics::kExact;
  const std::string alone = Job(pipeline(), wishes, &observer_).DrawnAlone();
  std::vector<std::unique_ptr<Job>> jobs;
  jobs.push_back(AtStep(wishes));
  jobs.push_back(AtStep(wishes));
  for (int64_t step = 0; step < wishes.steps; ++step) Step(jobs);
  ASSERT_EQ(observer_.forwards.size(), 3u);
  EXPECT_EQ(observer_.forwards[0].rows, 4);
  EXPECT_EQ(observer_.forwards[0].branch, Branch::kMixed);
  EXPECT_TRUE(jobs[0]->Latents() == alone && jobs[1]->Latents() == alone);
}

TEST_F(Steps, AForwardIsOfTheBackendOfMostRowsAndEachReceiptOfItsOwn) {
  std::vector<std::unique_ptr<Job>> jobs;
  for (int i = 0; i < 3; ++i) {
    Wishes wishes;
    wishes.guidance = i == 0 ? 1 : 2;
    wishes.attention.backend = i == 0 ? AttnBackend::kFlashAttn : AttnBackend::kSageAttn;
    jobs.push_back(AtStep(wishes));
  }
  Step(jobs);
  ASSERT_EQ(observer_.forwards.size(), 1u);
  EXPECT_EQ(observer_.forwards[0].self, AttnBackend::kSageAttn);
  EXPECT_EQ(observer_.forwards[0].rows, 5);
  double seconds[3] = {};
  for (size_t i = 0; i < jobs.size(); ++i) {
    for (const ReceiptEntry& entry : jobs[i]->planner->Entries()) {
      if (entry.role != AttentionRole::kSelf) continue;
      EXPECT_EQ(entry.ran, i == 0 ? AttnBackend::kFlashAttn : AttnBackend::kSageAttn);
      EXPECT_EQ(entry.calls, i == 0 ? 6u : 12u) << "one for each layer and pass";
      seconds[i] += entry.seconds.value();
    }
  }
  EXPECT_DOUBLE_EQ(seconds[1], seconds[2]) << "as many rows of the same calls";
}

TEST_F(Steps, ARunWhoseSelectionIsRefusedFailsAlone) {
  const std::string alone = Job(pipeline(), {}, &observer_).DrawnAlone();
  std::vector<std::unique_ptr<Job>> jobs;
  jobs.push_back(AtStep({}));
  Wishes unfit;
  unfit.attention.backend = AttnBackend::kSlaAttn;
  unfit.attention.parameters_json = R"({"of": "no backend"})";
  jobs.push_back(AtStep(unfit));
  jobs.push_back(AtStep({}));
  const auto errors = Step(jobs);
  EXPECT_FALSE(errors[0]);
  ASSERT_TRUE(errors[1]);
  EXPECT_EQ(errors[1]->field(), "attention.parameters.of");
  EXPECT_FALSE(errors[2]);
  EXPECT_EQ(jobs[1]->run->steps_done(), 0);
  EXPECT_TRUE(jobs[0]->DrawnAlone() == alone);
  EXPECT_TRUE(jobs[2]->DrawnAlone() == alone);
}

TEST_F(Steps, ACallThatIsNotFiniteFailsAlone) {
  std::mt19937 random(5);
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<std::string> alone;
  std::vector<denoised::Run*> runs;
  for (int i = 0; i < 3; ++i) {
    DenoiseRequest request = RandomCall(kSizes[0], LinearNumerics::kPacked, &random);
    if (i == 1) {  // large enough to overflow inside
      for (size_t at = 0; at < request.encoder_hidden_states.data.size(); at += 4) {
        const float huge = 3e38f;
        request.encoder_hidden_states.data.replace(at, 4, reinterpret_cast<const char*>(&huge), 4);
      }
    } else {
      alone.push_back(AnswerAlone(pipeline(), request, &observer_));
    }
    calls.push_back(std::make_unique<Call>(pipeline(), std::move(request), &observer_));
    runs.push_back(calls.back()->run.get());
  }
  const auto errors = pipeline()->Step(runs);
  EXPECT_FALSE(errors[0]);
  ASSERT_TRUE(errors[1]);
  EXPECT_EQ(errors[1]->reason(), "NON_FINITE");
  EXPECT_FALSE(errors[2]);
  EXPECT_TRUE(calls[0]->run->TakeResult().tensor.data == alone[0]);
  EXPECT_TRUE(calls[2]->run->TakeResult().tensor.data == alone[1]);
  EXPECT_EQ(runs[1]->Next().kind, UnitKind::kStep);
}

TEST_F(Steps, AStopPointInsideAForwardLeavesAllRunsAsBefore) {
  const std::string alone = Job(pipeline(), {}, &observer_).DrawnAlone();
  std::vector<std::unique_ptr<Job>> jobs;
  jobs.push_back(AtStep({}));
  jobs.push_back(AtStep({}));
  Step(jobs);
  {
    int asked = 0;
    const ScopedStopCheck stop([&]() -> std::optional<Error> {
      if (++asked < 30) return std::nullopt;
      return Error(StatusCode::kCancelled, "stop");
    });
    EXPECT_THROW(Step(jobs), Error);
  }
  for (const auto& job : jobs) {
    EXPECT_EQ(job->run->steps_done(), 1);
    EXPECT_TRUE(job->DrawnAlone() == alone);
    for (const ReceiptEntry& entry : job->planner->Entries()) {
      if (entry.role != AttentionRole::kSelf) continue;
      EXPECT_EQ(entry.calls, 6u * 3);
    }
  }
}

// Three passes of two jobs; in company of more than one, memory has run out.
TEST_F(Steps, WhereAForwardFindsNoMemoryItsHalvesAreTried) {
  for (const LinearNumerics linear : {LinearNumerics::kPacked, LinearNumerics::kExact}) {
    Wishes guided, plain;
    guided.guidance = 2;
    guided.linear = plain.linear = linear;
    const std::string one = Job(pipeline(), guided, &observer_).DrawnAlone(),
                      other = Job(pipeline(), plain, &observer_).DrawnAlone();
    std::vector<std::unique_ptr<Job>> jobs;
    jobs.push_back(AtStep(guided));
    jobs.push_back(AtStep(plain));
    for (int64_t step = 0; step < guided.steps; ++step) {
      int asked = 0;
      const ScopedStopCheck stop([&]() -> std::optional<Error> {
        if (HasForwardContext() && GetForwardContext().forward_batch->rows.size() > 1 &&
            ++asked % 10 == 0) {
          throw std::bad_alloc();
        }
        return std::nullopt;
      });
      for (const auto& error : Step(jobs)) EXPECT_FALSE(error) << error->what();
    }
    EXPECT_EQ(observer_.forwards.size(), 3u * 3);
    EXPECT_TRUE(jobs[0]->Latents() == one && jobs[1]->Latents() == other);
    for (const ReceiptEntry& entry : jobs[0]->planner->Entries()) {
      if (entry.role == AttentionRole::kSelf) {
        EXPECT_EQ(entry.calls, 6u * 2 * 3);
      }
    }
  }
}

TEST_F(Steps, APassThatFindsNoMemoryEndsTheStep) {
  const std::string alone = Job(pipeline(), {}, &observer_).DrawnAlone();
  std::vector<std::unique_ptr<Job>> jobs;
  jobs.push_back(AtStep({}));
  jobs.push_back(AtStep({}));
  {
    const ScopedStopCheck stop([]() -> std::optional<Error> {
      if (HasForwardContext()) throw std::bad_alloc();
      return std::nullopt;
    });
    const auto nobody = Caught([&] { Step(jobs); });
    ASSERT_TRUE(nobody);
    EXPECT_EQ(nobody->reason(), "MEMORY");
  }
  for (const auto& job : jobs) EXPECT_TRUE(job->DrawnAlone() == alone);
}

TEST_F(Steps, ARunIsSavedAtAnyUnitAndGoesOnWithTheSameBits) {
  Wishes wishes;
  wishes.guidance = 2;
  const std::string alone = Job(pipeline(), wishes, &observer_).DrawnAlone();
  for (int units = 0; units <= 5; ++units) {
    Job job(pipeline(), wishes, &observer_);
    for (int i = 0; i < units; ++i) DoNext(pipeline(), job.run.get());
    job.Restart();
    EXPECT_TRUE(job.DrawnAlone() == alone) << "after " << units << " units";
  }
}

TEST_F(Steps, ASavedRunOfAnotherRequestIsRefused) {
  Job job(pipeline(), {}, &observer_);
  DriveTo(UnitKind::kStep, pipeline(), job.run.get());
  DoNext(pipeline(), job.run.get());
  const std::string saved = job.run->Save();
  Wishes other[5];
  other[0].seed = 2;
  other[1].prompt = "a blue square";
  other[2].steps = 4;
  other[3].guidance = 2;
  other[4].size = kSizes[1];
  for (const Wishes& wishes : other) {
    try {
      Job(pipeline(), wishes, &observer_, saved);
      ADD_FAILURE() << "was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(error.field(), "saved");
    }
  }
}

TEST_F(Steps, AUnitSaysWhatItIs) {
  Wishes wishes;
  wishes.guidance = 2;
  Job job(pipeline(), wishes, &observer_);
  Unit unit = job.run->Next();
  EXPECT_EQ(unit.kind, UnitKind::kEncodePrompt);
  EXPECT_GT(unit.tokens, 0);
  EXPECT_GT(unit.multiply_adds, 0);
  DriveTo(UnitKind::kStep, pipeline(), job.run.get());
  unit = job.run->Next();
  EXPECT_EQ(unit.tokens, 96);
  EXPECT_GT(unit.multiply_adds, 1e6);
  Wishes longer = wishes;
  longer.text = 64;
  longer.steps = 9;
  longer.attention.backend = AttnBackend::kSageAttn;
  EXPECT_EQ(AtStep(longer)->run->Next().group, unit.group);
  longer.size = kSizes[1];
  EXPECT_NE(AtStep(longer)->run->Next().group, unit.group);
  wishes.linear = LinearNumerics::kExact;
  EXPECT_NE(AtStep(wishes)->run->Next().group, unit.group);
}

// ---- comparisons -------------------------------------------------------------------------------

class SampleObserver : public Observer {
 public:
  void OnShadow(AttnBackend, AttnBackend candidate, AttentionRole role, std::string_view,
                double relative_l2) override {
    found[{candidate, role}].push_back(relative_l2);
  }
  std::map<std::pair<AttnBackend, AttentionRole>, std::vector<double>> found;
};

// Everything of one tenant is compared at once; nothing is, once it ends.
class Compared {
 public:
  Compared(Pipeline* pipeline, const Size& size) : guard_(*pipeline->planner_setting().guard) {
    GenerationRequest request;
    request.width = size.width;
    request.height = size.height;
    request.num_frames = size.frames;
    const ResolvedParameters parameters =
        ResolveRequest(request, pipeline->info().defaults, pipeline->rules());
    const AttentionSpec spec = pipeline->DenoiseSpecs(parameters).front();
    // Room for a result, and not for a call that is kept.
    shadows_.emplace(0.5, 2 * QueryBytes(spec, 1, 4), std::chrono::steady_clock::now, &observer);
    for (int i = 0; i < 100; ++i) shadows_->UnitRan(1000);
    guard_.set_shadows(&*shadows_);
    for (AttnBackend candidate : {AttnBackend::kSageAttn, AttnBackend::kReference}) {
      shadows_->Start({.candidate = candidate, .scope = {.tenant = "compared"}});
    }
  }
  ~Compared() { guard_.set_shadows(nullptr); }

  SampleObserver observer;

 private:
  CallGuard& guard_;
  std::optional<Shadows> shadows_;
};

TEST(Comparisons, InASharedForwardAreOfTheRowsThatTheyAreFor) {
  Pipeline& pipeline = Model::Of("float32").pipeline();
  Observer nobody;
  Wishes mine, other;
  mine.size = other.size = kSizes[1];
  mine.tenant = "compared";
  other.seed = 2;
  other.guidance = 3;
  const std::string latents = Job(&pipeline, mine, &nobody).DrawnAlone();
  auto alone = SampleObserver().found;
  {
    const Compared compared(&pipeline, mine.size);
    EXPECT_EQ(Job(&pipeline, mine, &nobody).DrawnAlone(), latents);
    alone = compared.observer.found;
  }
  const std::pair self(AttnBackend::kSageAttn, AttentionRole::kSelf);
  const std::pair cross(AttnBackend::kReference, AttentionRole::kCross);
  EXPECT_EQ(alone[self].size(), alone[cross].size());
  ASSERT_GT(alone[self].size(), 6u) << "layers of three steps";
  const Compared compared(&pipeline, mine.size);
  Job first(&pipeline, other, &nobody), second(&pipeline, mine, &nobody);
  for (Job* job : {&first, &second}) DriveTo(UnitKind::kStep, &pipeline, job->run.get());
  while (second.run->Next().kind == UnitKind::kStep) {
    for (const auto& error : pipeline.Step({first.run.get(), second.run.get()})) {
      EXPECT_FALSE(error);
    }
  }
  EXPECT_EQ(second.Latents(), latents);
  EXPECT_EQ(compared.observer.found.at(self), alone[self]) << "bit for bit";
  EXPECT_EQ(compared.observer.found.at(cross), alone[cross]);
}

}  // namespace
}  // namespace denoised
