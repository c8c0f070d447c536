// Tune, ExportMeasurements and ImportMeasurements over a loopback channel, with a fake engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/measured_table.h"
#include "server/wire_budget.h"
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using Stub = v1::AdminService::Stub;
using testing::ElementsAre;

class TuneCalls : public ServerFixture {
 protected:
  // All messages of a tune, and how it ended.
  grpc::Status Tune(const v1::TuneRequest& request, std::vector<v1::TuneProgress>* told) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    const auto reader = admin_->Tune(&context, request);
    for (v1::TuneProgress progress; reader->Read(&progress);) told->push_back(progress);
    return reader->Finish();
  }
};

TEST_F(TuneCalls, ATuneTellsOfEveryMeasurementAndEnds) {
  v1::TuneRequest request;
  request.set_model("shapes");
  request.add_lengths(96);
  request.add_lengths(1560);
  request.add_rows(2);
  std::vector<v1::TuneProgress> told;
  EXPECT_TRUE(Tune(request, &told).ok());
  EXPECT_EQ(engine_->tuner().query().model, "shapes");
  EXPECT_THAT(engine_->tuner().query().lengths, ElementsAre(96, 1560));
  EXPECT_THAT(engine_->tuner().query().rows, ElementsAre(2));
  EXPECT_THAT(engine_->tuner().query().who, testing::HasSubstr("127.0.0.1")) << "for the audit";
  ASSERT_EQ(told.size(), 3u);
  EXPECT_EQ(told[0].backend(), "FLASH_ATTN");
  EXPECT_EQ(told[0].key(), "a kind");
  EXPECT_EQ(told[0].seconds(), 0.5);
  EXPECT_EQ(told[0].relative_l2(), 0.25);
  EXPECT_EQ(told[1].done(), 2);
  EXPECT_EQ(told[1].total(), 3);
  EXPECT_FALSE(told[2].has_seconds());
  EXPECT_EQ(told[2].why_not(), "cannot");
}

TEST_F(TuneCalls, ARefusedTuneEndsWithItsReason) {
  v1::TuneRequest request;
  request.set_model("missing");
  std::vector<v1::TuneProgress> told;
  const grpc::Status status = Tune(request, &told);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Reason(status), "MODEL_NOT_FOUND");
  EXPECT_TRUE(told.empty());
}

TEST_F(TuneCalls, AClientThatLeavesEndsTheTune) {
  engine_->tuner().hold = true;
  grpc::ClientContext context;
  const auto reader = admin_->Tune(&context, {});
  v1::TuneProgress progress;
  ASSERT_TRUE(reader->Read(&progress));
  context.TryCancel();
  EXPECT_TRUE(engine_->tuner().WaitForCancel());
  engine_->tuner().End(Error(StatusCode::kCancelled, "cancelled"));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(TuneCalls, TheServersEndEndsTheStream) {
  engine_->tuner().hold = true;
  grpc::ClientContext context;
  const auto reader = admin_->Tune(&context, {});
  v1::TuneProgress progress;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&progress));
  engine_->tuner().End(Error(StatusCode::kUnavailable, "the server stopped", "", "DRAINING"));
  EXPECT_FALSE(reader->Read(&progress));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TuneCalls, MeasurementsAreExportedAndImportedAsTheyAre) {
  v1::Measurements measurements;
  measurements.set_json("a document");
  v1::ImportMeasurementsResponse imported;
  ASSERT_TRUE(Call(admin_, &Stub::ImportMeasurements, measurements, &imported).ok());
  EXPECT_EQ(imported.taken(), 3);
  EXPECT_EQ(imported.ignored(), 1);
  EXPECT_EQ(imported.note(), "one is ignored");
  EXPECT_THAT(engine_->tuner().query().who, testing::HasSubstr("127.0.0.1"));
  v1::Measurements exported;
  ASSERT_TRUE(Call(admin_, &Stub::ExportMeasurements, {}, &exported).ok());
  EXPECT_EQ(exported.json(), "a document");
  measurements.set_json("");
  const grpc::Status refused = Call(admin_, &Stub::ImportMeasurements, measurements, &imported);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Field(refused), "json");
}

TEST_F(TuneCalls, AFullTableFitsIntoOneMessage) {
  MeasuredTable table;
  for (size_t i = 0; i < MeasuredTable::kMaxGroups; ++i) {
    MeasuredGroup group;
    group.on = {std::string(32, 'v'), std::string(48, 'd'), std::string(120, 'k')};
    group.key = {DType::kBFloat16,           1024, 1 << 17, 1 << 17, MaskKind::kCausalMask,
                 static_cast<int64_t>(1 + i)};
    group.num_heads = 100, group.q_len = group.kv_len = 1 << 17;
    group.batch_rows = 16, group.error_queries = 64;
    group.measured_at = std::chrono::system_clock::time_point(std::chrono::hours(480000));
    for (const AttnBackend backend : AllAttnBackends()) {
      group.rows.push_back({backend, 0.12345678901234567, 1.2345678901234567e-05});
    }
    table.Put(group);
  }
  EXPECT_LT(table.ToJson().size(), static_cast<size_t>(kMaxFieldBytes));
}

TEST_F(TuneCalls, ExplainCarriesTheRowThatAChoiceRestsOn) {
  v1::ExplainSelectionResponse response;
  ASSERT_TRUE(Call(admin_, &Stub::ExplainSelection, {}, &response).ok());
  const v1::MeasuredChoice& measured = response.roles(0).measured();
  EXPECT_EQ(measured.seconds(), 0.5);
  EXPECT_EQ(measured.relative_l2(), 0.25);
  EXPECT_THAT(measured.key(), testing::HasSubstr("2 rows"));
  EXPECT_EQ(measured.measured_at().seconds(), 1700000000);
  EXPECT_EQ(measured.note(), "a note");
}

}  // namespace
}  // namespace denoised
