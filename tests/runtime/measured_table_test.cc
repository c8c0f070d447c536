// What was measured: kinds of calls, machines, which backends come first, JSON.
#include "runtime/measured_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/error.h"
#include "runtime/attention/measurements.h"
#include "tests/backends/fake_backends.h"
#include "tests/runtime/measured.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

AttentionSpec Spec(int64_t q_len, int64_t kv_len) {
  AttentionSpec spec;
  spec.dtype = DType::kBFloat16;
  spec.head_size = 64;
  spec.q_len = q_len;
  spec.kv_len = kv_len;
  return spec;
}

TEST(MeasuredKeys, CallsUpToAPowerOfTwoAreAlike) {
  const MeasuredKey key = KeyOf(Spec(80, 512), 2);
  EXPECT_EQ(key, KeyOf(Spec(128, 257), 2));
  EXPECT_NE(key, KeyOf(Spec(129, 512), 2));
  EXPECT_NE(key, KeyOf(Spec(64, 512), 2));
  EXPECT_NE(key, KeyOf(Spec(80, 513), 2));
  EXPECT_NE(key, KeyOf(Spec(80, 512), 1));
  EXPECT_EQ(KeyOf(Spec(80, 80), 3), KeyOf(Spec(80, 80), 4));
  EXPECT_EQ(ToText(key), "bfloat16, head size 64, 65-128 queries, 257-512 keys, 2 rows");
}

TEST(MeasuredKeys, DtypeHeadSizeMaskAndCausalityAreApart) {
  const AttentionSpec spec = Spec(80, 80);
  std::vector<AttentionSpec> others(5, spec);
  others[0].dtype = DType::kFloat32;
  others[1].head_size = 128;
  others[2].has_mask = true;
  others[3].causal = true;
  others[4].causal = others[4].has_mask = true;
  std::set<MeasuredKey> keys = {KeyOf(spec, 1)};
  for (const AttentionSpec& other : others) keys.insert(KeyOf(other, 1));
  EXPECT_EQ(keys.size(), 6u);
  AttentionSpec alike = spec;  // what a layer needs that no kernel's speed follows from
  alike.num_heads = 40;
  alike.role = AttentionRole::kCross;
  EXPECT_EQ(KeyOf(alike, 1), KeyOf(spec, 1));
  EXPECT_THAT(ToText(KeyOf(others[3], 1)), HasSubstr("causal, 1 row"));
}

TEST(MeasuredTables, AGroupReplacesThatOfItsMachineAndKeyAndNoOther) {
  MeasuredTable table;
  const MeasuredOn here{"1", "a CPU", "avx2"}, there{"1", "a CPU", "amx"};
  const MeasuredKey key = KeyOf(Spec(80, 80), 1);
  table.Put(GroupOf(here, key, {{AttnBackend::kFlashAttn, 1, 0}}));
  table.Put(GroupOf(there, key, {{AttnBackend::kFlashAttn, 2, 0}}));
  table.Put(GroupOf(here, key, {{AttnBackend::kTorchSdpa, 3, 0}}));
  EXPECT_EQ(table.size(), 2u);
  ASSERT_NE(table.Find(here, key), nullptr);
  EXPECT_THAT(table.Find(here, key)->rows, ElementsAre(MeasuredRow{AttnBackend::kTorchSdpa, 3, 0}));
  EXPECT_EQ(table.Find(here, KeyOf(Spec(80, 80), 2)), nullptr);
  ASSERT_THAT(table.Elsewhere(here, key), testing::SizeIs(1));
  EXPECT_EQ(table.Elsewhere(here, key)[0]->on, there);
}

TEST(MeasuredTables, OfMoreThanAreKeptThoseOfOtherMachinesAreForgottenFirstThenTheOldest) {
  MeasuredTable table;
  const MeasuredOn here{"1", "a CPU", "avx2"}, there{"1", "a CPU", "amx"};
  const auto put = [&](const MeasuredOn& on, int64_t head_size, int64_t later) {
    MeasuredGroup group = GroupOf(on, KeyOf(Spec(80, 80), 1), {});
    group.key.head_size = head_size;
    group.measured_at += std::chrono::seconds(later);
    table.Put(group);
    return group.key;
  };
  const MeasuredKey oldest = put(here, 1, -1), foreign = put(there, 1, 9);
  for (size_t i = 2; i <= MeasuredTable::kMaxGroups; ++i) put(here, static_cast<int64_t>(i), 0);
  table.Trim(here);
  EXPECT_EQ(table.size(), MeasuredTable::kMaxGroups);
  EXPECT_EQ(table.Find(there, foreign), nullptr);
  EXPECT_NE(table.Find(here, oldest), nullptr);
  put(here, 1000, 0);
  table.Trim(here);
  EXPECT_EQ(table.size(), MeasuredTable::kMaxGroups);
  EXPECT_EQ(table.Find(here, oldest), nullptr);
  put(here, 1001, 0);
  EXPECT_THROW(MeasuredTable::Parse(table.ToJson()), Error) << "more than are kept";
}

TEST(MeasuredTables, AreReadBackFromTheirJson) {
  MeasuredTable table;
  MeasuredGroup group =
      GroupOf({"0.1.0+ab", "a \"CPU\"", "own=avx2"}, KeyOf(Spec(80, 512), 2),
              {{AttnBackend::kFlashAttn, 1.25e-3, 0.00171}, {AttnBackend::kReference, 0.5, 0}});
  group.key.mask = MaskKind::kCausalMask;
  table.Put(group);
  table.Put(GroupOf({"2", "b", "c"}, KeyOf(Spec(1560, 1560), 1), {}));
  const MeasuredTable read = MeasuredTable::Parse(table.ToJson());
  EXPECT_EQ(read.size(), 2u);
  ASSERT_NE(read.Find(group.on, group.key), nullptr);
  EXPECT_EQ(*read.Find(group.on, group.key), group);
  EXPECT_EQ(MeasuredTable::Parse(MeasuredTable().ToJson()).size(), 0u);
}

TEST(MeasuredTables, WhatIsNotAsWrittenIsRefusedByItsPlace) {
  MeasuredTable table;
  table.Put(GroupOf({"1", "a", "b"}, KeyOf(Spec(80, 80), 1), {{AttnBackend::kFlashAttn, 1, 0}}));
  const std::string good = table.ToJson();
  const auto complaint = [&](const std::string& from, const std::string& to) -> std::string {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    try {
      MeasuredTable::Parse(text);
      return "taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "json");
      EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
      return error.what();
    }
  };
  EXPECT_THAT(complaint(R"("FLASH_ATTN")", R"("FLASH")"), HasSubstr("groups[0].rows[0].backend"));
  EXPECT_THAT(complaint(R"("seconds":1.0)", R"("seconds":-1)"),
              HasSubstr("groups[0].rows[0].seconds"));
  EXPECT_THAT(complaint(R"("seconds":1.0)", R"("seconds":"x")"), HasSubstr("rows[0].seconds"));
  EXPECT_THAT(complaint(R"("seconds":1.0)", R"("other":1)"), HasSubstr("seconds: is missing"));
  EXPECT_THAT(complaint(R"("head_size":64)", R"("head_size":0)"),
              HasSubstr("groups[0].key.head_size"));
  EXPECT_THAT(complaint(R"("head_size":64)", R"("head_size":18446744073709551615)"),
              HasSubstr("groups[0].key.head_size"));
  EXPECT_THAT(complaint(R"("none")", R"("some")"), HasSubstr("groups[0].key.mask"));
  EXPECT_THAT(complaint(R"("device":"a")", R"("device":7)"), HasSubstr("groups[0].on.device"));
  EXPECT_THAT(complaint(R"("version":1})", R"("version":2})"), HasSubstr("version"));
  EXPECT_THAT(complaint(R"("groups":[)", R"("groups":[7,)"), HasSubstr("groups[0]"));
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_THROW(MeasuredTable::Parse(good.substr(0, length)), Error) << length;
  }
  EXPECT_THROW(MeasuredTable::Parse(std::string(MeasuredTable::kMaxJson + 1, ' ')), Error);
  EXPECT_THROW(MeasuredTable::Parse("[]"), Error);
}

// FLASH_ATTN and TORCH_SDPA are automatic, SAGE_ATTN and VIDEO_SPARSE_ATTN are not.
class MeasurementsTest : public testing::Test {
 protected:
  void Open(std::optional<double> auto_error) {
    MeasuredTable table;
    table.Put(GroupOf(here_, key_,
                      {{AttnBackend::kFlashAttn, 3, 0.002},
                       {AttnBackend::kTorchSdpa, 2, 0.003},
                       {AttnBackend::kSageAttn, 1, 0.01},
                       {AttnBackend::kVideoSparseAttn, 0.5, 0.5}}));
    measurements_.Open(here_, auto_error, std::move(table));
  }
  std::vector<AttnBackend> Preferred(const MeasuredKey& key) {
    return BackendsOf(measurements_.OrderOf(key, registry_));
  }
  std::vector<AttnBackend> Of(AutomaticOrder& order, const AttentionSpec& spec) {
    return BackendsOf(order.Of(spec, 1, measurements_, registry_));
  }
  static std::vector<AttnBackend> BackendsOf(const MeasuredOrder& order) {
    std::vector<AttnBackend> backends;
    for (const MeasuredRow& row : order.fastest_first) backends.push_back(row.backend);
    return backends;
  }

  FakeBackend sdpa_{AttnBackend::kTorchSdpa}, flash_{AttnBackend::kFlashAttn},
      sage_{AttnBackend::kSageAttn}, vsa_{AttnBackend::kVideoSparseAttn};
  BackendRegistry registry_{{{AttnBackend::kFlashAttn, &flash_, "", true},
                             {AttnBackend::kTorchSdpa, &sdpa_, "", true},
                             {AttnBackend::kSageAttn, &sage_, "", false},
                             {AttnBackend::kVideoSparseAttn, &vsa_, "", false}}};
  const MeasuredOn here_{"1", "a CPU", "avx2"};
  const MeasuredKey key_ = KeyOf(Spec(80, 80), 1);
  Measurements measurements_;
};

TEST_F(MeasurementsTest, WithoutAutoErrorTheFastestAutomaticBackendComesFirst) {
  Open(std::nullopt);
  EXPECT_THAT(Preferred(key_), ElementsAre(AttnBackend::kTorchSdpa, AttnBackend::kFlashAttn));
}

TEST_F(MeasurementsTest, AutoErrorAdmitsWhatIsAtMostSoFarFromTheReference) {
  Open(0.01);
  EXPECT_THAT(Preferred(key_), ElementsAre(AttnBackend::kSageAttn, AttnBackend::kTorchSdpa,
                                           AttnBackend::kFlashAttn));
  Open(0.0099);
  EXPECT_THAT(Preferred(key_), ElementsAre(AttnBackend::kTorchSdpa, AttnBackend::kFlashAttn));
  Open(0.5);
  EXPECT_EQ(Preferred(key_).front(), AttnBackend::kVideoSparseAttn);
  Open(0);  // an automatic backend is never shut out
  EXPECT_THAT(Preferred(key_), ElementsAre(AttnBackend::kTorchSdpa, AttnBackend::kFlashAttn));
}

TEST_F(MeasurementsTest, WhereNothingWasMeasuredNothingIsPreferred) {
  EXPECT_THAT(Preferred(key_), IsEmpty()) << "not opened yet";
  Open(std::nullopt);
  EXPECT_THAT(Preferred(KeyOf(Spec(80, 80), 2)), IsEmpty());
  EXPECT_THAT(Preferred(KeyOf(Spec(300, 300), 1)), IsEmpty());
}

TEST_F(MeasurementsTest, RowsOfAnotherVersionDeviceOrInstructionSetAreIgnoredAndSaidToBe) {
  const std::vector<MeasuredOn> others = {
      {"2", "a CPU", "avx2"}, {"1", "another CPU", "avx2"}, {"1", "a CPU", "amx"}};
  for (const MeasuredOn& other : others) {
    MeasuredTable table;
    table.Put(GroupOf(other, key_, {{AttnBackend::kTorchSdpa, 2, 0}}));
    measurements_.Open(here_, std::nullopt, std::move(table));
    EXPECT_THAT(Preferred(key_), IsEmpty());
    EXPECT_THAT(measurements_.WhyIgnored(key_), HasSubstr("1 measurement is ignored"));
    EXPECT_THAT(measurements_.WhyIgnored(key_), HasSubstr(WhatDiffers(here_, other)));
    EXPECT_EQ(measurements_.Ignored().ignored, 1);
  }
  EXPECT_THAT(WhatDiffers(here_, others[0]), HasSubstr("another version (2)"));
  EXPECT_THAT(WhatDiffers(here_, others[1]), HasSubstr("another device (another CPU)"));
  EXPECT_THAT(WhatDiffers(here_, others[2]), HasSubstr("another instruction set (amx)"));
}

TEST_F(MeasurementsTest, APreferredBackendSaysWhatWasMeasuredOfIt) {
  Open(std::nullopt);
  const MeasuredOrder order = measurements_.OrderOf(key_, registry_);
  EXPECT_EQ(order.fastest_first.front(), (MeasuredRow{AttnBackend::kTorchSdpa, 2, 0.003}));
  EXPECT_EQ(
      order.For(key_).front(),
      (PreferredBackend{AttnBackend::kTorchSdpa, "2 s a call, error 0.003, for " + ToText(key_)}));
  EXPECT_EQ(measurements_.WhyIgnored(key_), "");
}

TEST_F(MeasurementsTest, OfAnImportTheLaterMeasurementStays) {
  Open(std::nullopt);
  MeasuredTable other;
  MeasuredGroup older = GroupOf(here_, key_, {{AttnBackend::kFlashAttn, 1, 0}});
  older.measured_at -= std::chrono::hours(1);
  other.Put(older);
  other.Put(GroupOf({"2", "b", "c"}, key_, {{AttnBackend::kFlashAttn, 1, 0}}));
  const Measurements::Taken taken = measurements_.Take(other);
  EXPECT_EQ(taken.groups, 2);
  EXPECT_EQ(taken.ignored, 1);
  EXPECT_THAT(taken.why_ignored, HasSubstr("another version (2)"));
  EXPECT_EQ(Preferred(key_).front(), AttnBackend::kTorchSdpa);
  older.measured_at += std::chrono::hours(2);
  MeasuredTable newer;
  newer.Put(older);
  measurements_.Take(newer);
  EXPECT_THAT(Preferred(key_), ElementsAre(AttnBackend::kFlashAttn));
}

TEST_F(MeasurementsTest, WorkThatHasBegunKeepsTheOrderThatItGotOverARestartToo) {
  const AttentionSpec spec = Spec(80, 80), other = Spec(300, 300);
  AutomaticOrder begun;
  EXPECT_THAT(Of(begun, spec), IsEmpty());
  Open(std::nullopt);
  EXPECT_THAT(Of(begun, spec), IsEmpty());
  AutomaticOrder later;
  EXPECT_EQ(Of(later, spec).front(), AttnBackend::kTorchSdpa);
  Open(0.5);
  EXPECT_EQ(Of(later, spec).front(), AttnBackend::kTorchSdpa);
  AutomaticOrder again, begun_again;
  again.Restore(later.Save());
  begun_again.Restore(begun.Save());
  EXPECT_THAT(Of(again, spec), ElementsAre(AttnBackend::kTorchSdpa, AttnBackend::kFlashAttn));
  EXPECT_THAT(Of(begun_again, spec), IsEmpty());
  const MeasuredOrder before = later.Of(spec, 1, measurements_, registry_);
  const MeasuredOrder after = again.Of(spec, 1, measurements_, registry_);
  EXPECT_EQ(after.fastest_first, before.fastest_first);
  EXPECT_EQ(after.measured_at, before.measured_at);
  EXPECT_THAT(Of(again, other), IsEmpty());
  again.Restore("nothing of that kind\n\tX Y\n");
  EXPECT_EQ(Of(again, spec).front(), AttnBackend::kVideoSparseAttn);
}

TEST_F(MeasurementsTest, WhatWorkFoundUnmeasuredIsRememberedOnceUntilItIsTaken) {
  for (int i = 0; i < 2; ++i) AutomaticOrder().Of(Spec(80, 80), 1, measurements_, registry_);
  EXPECT_TRUE(measurements_.HasMissing());
  const auto missing = measurements_.TakeMissing();
  ASSERT_TRUE(missing);
  EXPECT_EQ(KeyOf(missing->spec, missing->rows), key_);
  EXPECT_FALSE(measurements_.TakeMissing());
  AutomaticOrder().Of(Spec(80, 80), 1, measurements_, registry_);
  EXPECT_FALSE(measurements_.HasMissing()) << "what could not be measured is not tried for ever";
}

}  // namespace
}  // namespace denoised
