// What the ledger keeps of jobs and requests comes back the same, or not at all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "runtime/store/job_row.h"
#include "runtime/store/request_row.h"
#include "tests/runtime/store_harness.h"

namespace denoised {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

// Whole microseconds, as rows keep them.
std::chrono::system_clock::time_point Moment(int64_t micros) {
  return std::chrono::system_clock::time_point(std::chrono::microseconds(micros));
}

ReceiptEntry FullEntry() {
  ReceiptEntry entry;
  entry.role = AttentionRole::kCross;
  entry.first_step = 3;
  entry.last_step = 9;
  entry.asked = AttnBackend::kSlaAttn;
  entry.ran = AttnBackend::kTorchSdpa;
  entry.parameters = R"({"topk":0.25})";
  entry.selection.granted = {SelectionSource::kForce, AttnBackend::kSageAttn, "{}", "lease-1"};
  entry.selection.granted.rule = 2;
  entry.selection.granted.strict = true;
  entry.layers = Interval{3, 5};
  entry.selection.refusals = {
      {SelectionSource::kRequest, AttnBackend::kFlashAttn, "no \"device\"\n"}};
  entry.calls = UINT64_MAX;
  entry.seconds = 0.1;
  return entry;
}

JobRow FullRow() {
  JobRow row;
  row.number = 12;
  row.key = "key \xc3\xa9";
  row.request_digest = "digest";
  row.crashes = 1;
  JobSnapshot& job = row.job;
  job.id = "0123456789abcdef";
  job.sequence = uint64_t{1} << 40;
  job.state = JobState::kFailed;
  job.stage = JobStage::kDecode;
  job.step = 7;
  job.num_steps = 9;
  job.eta_seconds = 1.0 / 3;
  job.attempt = 2;
  job.priority = Priority::kUrgent;
  job.tenant = "tenant";
  job.prompt = std::string("a \"red\" circle\n\x01 \xf0\x9f\x94\xb4\0.", 24);
  job.parameters.model = "model";
  job.parameters.seed = INT64_MIN;
  job.parameters.width = 64;
  job.parameters.guidance_scale = 5.1;
  job.parameters.flow_shift = 1e-300;
  job.parameters.negative_prompt = "none";
  job.parameters.linear = LinearNumerics::kInt8;
  job.created_at = Moment(1'800'000'000'123'456);
  job.started_at = Moment(1'800'000'000'123'457);
  job.finished_at = Moment(1'800'000'001'000'000);
  job.stage_seconds = {{JobStage::kTextEncode, 0.25}, {JobStage::kDenoise, 1e-9}};
  job.receipt.entries = {FullEntry(), ReceiptEntry{}};
  job.receipt.weights_digest = "weights";
  job.receipt.fingerprint = "print";
  job.receipt.notes = {"one", ""};
  job.artifacts = {{ArtifactFormat::kNpy, "video.npy", UINT64_MAX, "sha"}};
  job.error = JobError{StatusCode::kDataLoss, "message", "field", "REASON", std::nullopt, "a\nb"};
  row.accepted = PastMoment{"boot", std::chrono::microseconds(7), Moment(1'800'000'000'123'456)};
  row.ended = PastMoment{"boot", std::chrono::microseconds(8), Moment(1'800'000'001'000'000)};
  row.end_number = UINT64_MAX;
  return row;
}

TEST(StoreRows, AJobComesBackWhole) {
  const JobRow row = FullRow();
  const std::string text = WriteRow(row);
  const JobRow back = ReadRow(12, text);
  EXPECT_EQ(WriteRow(back), text) << "every field that is written is read";
  const JobSnapshot& job = back.job;
  EXPECT_EQ(back.number, 12u);
  EXPECT_EQ(back.key, row.key);
  EXPECT_EQ(back.crashes, 1);
  EXPECT_EQ(back.accepted->boot_id, "boot");
  EXPECT_EQ(back.ended->since_boot, std::chrono::microseconds(8));
  EXPECT_EQ(back.ended->wall, row.ended->wall);
  EXPECT_EQ(back.end_number, UINT64_MAX);
  EXPECT_EQ(job.prompt, row.job.prompt);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.stage, JobStage::kDecode);
  EXPECT_EQ(job.eta_seconds, row.job.eta_seconds);
  EXPECT_EQ(job.created_at, row.job.created_at);
  EXPECT_EQ(job.finished_at, row.job.finished_at);
  EXPECT_EQ(job.stage_seconds, row.job.stage_seconds);
  EXPECT_EQ(job.parameters.seed, INT64_MIN);
  EXPECT_EQ(job.parameters.flow_shift, 1e-300);
  EXPECT_EQ(job.parameters.linear, LinearNumerics::kInt8);
  ASSERT_EQ(job.receipt.entries.size(), 2u);
  EXPECT_EQ(job.receipt.entries[0].selection, row.job.receipt.entries[0].selection);
  EXPECT_EQ(job.receipt.entries[0].asked, AttnBackend::kSlaAttn);
  EXPECT_EQ(job.receipt.entries[0].calls, UINT64_MAX);
  EXPECT_EQ(job.receipt.entries[0].layers, (Interval{3, 5}));
  EXPECT_FALSE(job.receipt.entries[1].layers);
  EXPECT_FALSE(job.receipt.entries[1].seconds);
  EXPECT_EQ(job.artifacts[0].size_bytes, UINT64_MAX);
  EXPECT_EQ(job.error->reason, "REASON");
  EXPECT_EQ(job.error->details, "a\nb");
}

GenerationRequest Reread(const GenerationRequest& request) {
  const ClockReading now = ReadClocks();
  return ReadRequest(WriteRequest(request, now), now);
}

TEST(StoreRows, WhatIsUnsetStaysUnset) {
  JobRow row;
  row.job.id = "a";
  const JobRow back = ReadRow(1, WriteRow(row));
  EXPECT_FALSE(back.accepted || back.ended || back.end_number);
  const JobSnapshot& job = back.job;
  EXPECT_FALSE(job.eta_seconds || job.started_at || job.finished_at || job.error);
  const GenerationRequest request = Reread(GenerationRequest{});
  EXPECT_FALSE(request.negative_prompt || request.seed || request.height || request.latents ||
               request.deadline || request.preview || request.numerics.linear);
}

GenerationRequest FullRequest() {
  GenerationRequest request;
  request.model = "model";
  request.prompt = "a prompt";
  request.negative_prompt = "";
  request.seed = -1;
  request.height = 64;
  request.width = 96;
  request.num_frames = 5;
  request.fps = 16;
  request.num_inference_steps = 3;
  request.guidance_scale = 5.25;
  request.flow_shift = 3;
  request.max_sequence_length = 512;
  request.attention = {AttnBackend::kSageAttn, SelectionMode::kStrict, R"({"a":1})", {}};
  AttentionRule rule{{AttentionRole::kSelf, Interval{0, 3}, Interval{4, 19}, SigmaRange{0.2, 0.9}},
                     AttnBackend::kVideoSparseAttn,
                     R"({"sparsity":0.5})",
                     SelectionMode::kStrict};
  request.attention.schedule = {rule, {{}, AttnBackend::kReference}};
  request.pin_backends = true;
  request.numerics.linear = LinearNumerics::kExact;
  request.latents = HostTensor{DType::kBFloat16, {1, 2, 2}, std::string("\0\1\2\3\4\5\6\7", 8)};
  request.formats = {ArtifactFormat::kPng, ArtifactFormat::kMp4};
  request.deadline = std::chrono::steady_clock::now() + hours(1);
  request.best_effort_deadline = true;
  request.priority = Priority::kBatch;
  request.tenant = "tenant";
  request.preview = PreviewOptions{3, 128};
  request.belongs_to_call = true;
  return request;
}

TEST(StoreRows, ARequestComesBackWhole) {
  const GenerationRequest request = FullRequest();
  const GenerationRequest back = Reread(request);
  EXPECT_EQ(RequestDigest(back), RequestDigest(request));
  EXPECT_EQ(back.negative_prompt, "");
  EXPECT_EQ(back.seed, -1);
  EXPECT_EQ(back.width, 96);
  EXPECT_EQ(back.guidance_scale, 5.25);
  EXPECT_EQ(back.attention.backend, AttnBackend::kSageAttn);
  EXPECT_EQ(back.attention.mode, SelectionMode::kStrict);
  EXPECT_EQ(back.attention.schedule, request.attention.schedule);
  EXPECT_TRUE(back.pin_backends);
  EXPECT_EQ(back.numerics.linear, LinearNumerics::kExact);
  EXPECT_EQ(back.latents->data, request.latents->data);
  EXPECT_EQ(back.latents->shape, request.latents->shape);
  EXPECT_EQ(back.latents->dtype, DType::kBFloat16);
  EXPECT_EQ(back.formats, request.formats);
  EXPECT_EQ(back.preview->max_side, 128);
  EXPECT_TRUE(back.belongs_to_call);
  const auto drift = *back.deadline - *request.deadline;
  EXPECT_LT(drift < drift.zero() ? -drift : drift, minutes(1)) << "the same time of day";
}

TEST(StoreRows, TheDigestKnowsEveryFieldButTheKeyAndTheMomentOfTheDeadline) {
  using Edit = std::function<void(GenerationRequest&)>;
  const std::string whole = RequestDigest(FullRequest());
  const auto edited = [&](const Edit& edit) {
    GenerationRequest request = FullRequest();
    edit(request);
    return RequestDigest(request);
  };
  const std::vector<Edit> edits = {
      [](auto& r) { r.model = "x"; },
      [](auto& r) { r.prompt += " "; },
      [](auto& r) { r.negative_prompt.reset(); },
      [](auto& r) { r.seed = 0; },
      [](auto& r) { r.height = 65; },
      [](auto& r) { r.width.reset(); },
      [](auto& r) { r.num_frames = 9; },
      [](auto& r) { r.fps = 8; },
      [](auto& r) { r.num_inference_steps = 4; },
      [](auto& r) { r.guidance_scale = 5.250001; },
      [](auto& r) { r.flow_shift = 4; },
      [](auto& r) { r.max_sequence_length = 511; },
      [](auto& r) { r.attention.backend.reset(); },
      [](auto& r) { r.attention.mode = SelectionMode::kPrefer; },
      [](auto& r) { r.attention.parameters_json = "{}"; },
      [](auto& r) { r.attention.schedule.pop_back(); },
      [](auto& r) { std::swap(r.attention.schedule[0], r.attention.schedule[1]); },
      [](auto& r) { r.attention.schedule[0].where.layers->last = 4; },
      [](auto& r) { r.attention.schedule[0].mode = SelectionMode::kPrefer; },
      [](auto& r) { r.attention.schedule[0].parameters_json = "{}"; },
      [](auto& r) { r.pin_backends = false; },
      [](auto& r) { r.numerics.linear.reset(); },
      [](auto& r) { r.latents->data[3] = 'x'; },
      [](auto& r) {
        r.latents->shape = {2, 1, 2};
      },
      [](auto& r) { r.latents.reset(); },
      [](auto& r) { std::swap(r.formats[0], r.formats[1]); },
      [](auto& r) { r.deadline.reset(); },
      [](auto& r) { r.best_effort_deadline = false; },
      [](auto& r) { r.priority = Priority::kNormal; },
      [](auto& r) { r.tenant = ""; },
      [](auto& r) { r.preview->every_steps = 4; },
  };
  std::set<std::string> digests = {whole};
  for (const Edit& edit : edits) digests.insert(edited(edit));
  EXPECT_EQ(digests.size(), edits.size() + 1);
  EXPECT_EQ(edited([](auto& r) { r.idempotency_key = "key"; }), whole);
  EXPECT_EQ(edited([](auto& r) { *r.deadline += seconds(9); }), whole);
}

// A row of any bytes is read or refused with DATA_LOSS; nothing else.
TEST(StoreRows, DamagedTextIsRefusedAndEndsNothing) {
  std::mt19937 random(7);
  const std::string job = WriteRow(FullRow());
  const RequestRow request = WriteRequest(FullRequest(), ReadClocks());
  const auto mutated = [&](std::string text) {
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        case 2:
          text.insert(at, text.substr(random() % text.size(), random() % 12));
          break;
        default:
          text.resize(at + 1);
      }
    }
    return text;
  };
  int refused = 0;
  const auto attempt = [&](const std::function<void()>& read) {
    try {
      read();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kDataLoss);
      ++refused;
    }
  };
  for (int i = 0; i < 4000; ++i) {
    attempt([&] { ReadRow(1, mutated(job)); });
    attempt([&] { ReadRequest({mutated(request.text), request.latents}, ReadClocks()); });
  }
  EXPECT_GT(refused, 4000);
  const int before = refused;
  for (const std::string number : {"1e300", "-1e19", "9223372036854775807"}) {
    std::string moment = job, step = job;
    moment.insert(moment.find("\"created_at\":") + 13, number + ",\"was\":");
    step.insert(step.find("\"step\":") + 7, number + ",\"was\":");
    attempt([&] { ReadRow(1, moment); });
    if (number.find('e') != std::string::npos) attempt([&] { ReadRow(1, step); });
  }
  EXPECT_EQ(refused - before, 5) << "numbers that no row has";
  attempt([&] { ReadRow(1, ""); });
  attempt([&] { ReadRow(1, std::string(100000, '[')); });
  attempt([&] { ReadRequest({request.text, "short"}, ReadClocks()); });
}

TEST(StoreRows, AnIdThatCouldNameAnotherFileIsNone) {
  EXPECT_TRUE(IsPlainId("0af3-X_z"));
  for (const char* id : {"", "..", "a/b", "a.mp4", "a b", "\n"}) EXPECT_FALSE(IsPlainId(id)) << id;
  EXPECT_FALSE(IsPlainId(std::string(65, 'a')));
}

}  // namespace
}  // namespace denoised
