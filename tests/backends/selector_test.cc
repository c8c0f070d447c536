// FastVideo's selector as a truth table (its rows are lettered a to m), with our differences.
#include "backends/selector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/error.h"
#include "tests/backends/fake_backends.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

constexpr AttnBackend kAutomaticAnswer = AttnBackend::kTorchSdpa;

class SelectorTest : public ::testing::Test {
 protected:
  SelectorTest() {
    spec_.supported = {AttnBackend::kTorchSdpa, AttnBackend::kFlashAttn, AttnBackend::kSageAttn};
    spec_.head_size = 128;
    spec_.dtype = DType::kBFloat16;
  }

  Selection Choose() const { return Select(spec_, wishes_, registry_, device_); }

  void ExpectFailure(StatusCode code, const std::string& part) const {
    try {
      Choose();
      ADD_FAILURE() << "a backend was chosen";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  }

  FakeBackend sdpa_{AttnBackend::kTorchSdpa};
  FakeBackend flash_{AttnBackend::kFlashAttn, [](const AttentionSpec& spec, const DeviceInfo&) {
                       return spec.head_size == 128 ? std::optional<std::string>()
                                                    : "head size is not 128";
                     }};
  FakeBackend sage_{AttnBackend::kSageAttn};
  FakeBackend vsa_{AttnBackend::kVideoSparseAttn};
  BackendRegistry registry_{{{AttnBackend::kTorchSdpa, &sdpa_, "", true},
                             {AttnBackend::kFlashAttn, &flash_, "", true},
                             {AttnBackend::kSageAttn, &sage_, "", false},
                             {AttnBackend::kVideoSparseAttn, &vsa_, "", false},
                             {AttnBackend::kCudnnAttn, nullptr, "needs CUDA", true}}};
  AttentionSpec spec_;
  SelectionWishes wishes_;
  DeviceInfo device_;
};

TEST_F(SelectorTest, A_AnEmptyListIsAlwaysAnErrorEvenWhenForced) {
  spec_.supported.clear();
  ExpectFailure(StatusCode::kInvalidArgument, "lists none");
  wishes_.force = AttnBackend::kTorchSdpa;
  ExpectFailure(StatusCode::kInvalidArgument, "lists none");
}

TEST_F(SelectorTest, B_AForcedBackendOnTheListIsChosen) {
  wishes_.force = AttnBackend::kFlashAttn;
  wishes_.force_id = "force-7";
  wishes_.request = AttnBackend::kSageAttn;
  wishes_.environment = AttnBackend::kSageAttn;
  const Selection selection = Choose();
  EXPECT_EQ(selection.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(selection.source, SelectionSource::kForce);
  EXPECT_EQ(selection.force_id, "force-7");
  EXPECT_TRUE(selection.refusals.empty());
}

// FastVideo went straight to automatic here and said nothing. Ours falls to the next source, and
// the selection carries the refusal.
TEST_F(SelectorTest, C_AForceThatIsNotOnTheListFallsToTheNextSourceAndSaysSo) {
  wishes_.force = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
  wishes_.environment = AttnBackend::kFlashAttn;
  const Selection selection = Choose();
  EXPECT_EQ(selection.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(selection.source, SelectionSource::kEnvironment);
  EXPECT_EQ(selection.force_id, "");
  ASSERT_EQ(selection.refusals.size(), 1u);
  EXPECT_EQ(selection.refusals[0].backend, AttnBackend::kVideoSparseAttn);
  EXPECT_EQ(selection.refusals[0].source, SelectionSource::kForce);
  EXPECT_THAT(selection.refusals[0].reason, HasSubstr("TORCH_SDPA, FLASH_ATTN, SAGE_ATTN"));
}

TEST_F(SelectorTest, D_WithoutAForceTheEnvironmentIsChosen) {
  wishes_.environment = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(Choose().source, SelectionSource::kEnvironment);
}

TEST_F(SelectorTest, E_AnEnvironmentThatIsNotOnTheListMeansAutomatic) {
  wishes_.environment = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
  EXPECT_EQ(Choose().source, SelectionSource::kAutomatic);
}

TEST_F(SelectorTest, F_NoWishMeansAutomatic) { EXPECT_EQ(Choose().backend, kAutomaticAnswer); }

TEST_F(SelectorTest, J_ARequestBeatsTheEnvironment) {
  wishes_.request = AttnBackend::kSageAttn;
  wishes_.environment = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().backend, AttnBackend::kSageAttn);
  EXPECT_EQ(Choose().source, SelectionSource::kRequest);
}

TEST_F(SelectorTest, J_TheModelDefaultIsTheWeakestNamedSource) {
  wishes_.model_default = AttnBackend::kSageAttn;
  EXPECT_EQ(Choose().backend, AttnBackend::kSageAttn);
  EXPECT_EQ(Choose().source, SelectionSource::kModelDefault);
  wishes_.environment = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().backend, AttnBackend::kFlashAttn);
}

TEST_F(SelectorTest, K_ADefaultAndARequestThatAreNotOnTheListMeanAutomatic) {
  wishes_.request = AttnBackend::kVideoSparseAttn;
  wishes_.model_default = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
  EXPECT_EQ(Choose().refusals.size(), 2u);
}

TEST_F(SelectorTest, L_EqualInputsGiveEqualAnswers) {
  wishes_.force = AttnBackend::kVideoSparseAttn;
  const Selection first = Choose(), second = Choose();
  EXPECT_EQ(first.backend, second.backend);
  EXPECT_EQ(first.refusals, second.refusals);
}

TEST_F(SelectorTest, M_TheOrderOfTheListDoesNotMatter) {
  const AttnBackend before = Choose().backend;
  std::reverse(spec_.supported.begin(), spec_.supported.end());
  EXPECT_EQ(Choose().backend, before);
}

// FastVideo's trap: once a head size had resolved, a later force was ignored.
TEST_F(SelectorTest, MustNotAnswerFromAStaleCacheAfterAForce) {
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
  wishes_.force = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().backend, AttnBackend::kFlashAttn);
  wishes_.force.reset();
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
}

// FastVideo's trap: the list filtered explicit requests only.
TEST_F(SelectorTest, MustNotAnswerAutomaticallyWithWhatTheLayerDoesNotList) {
  spec_.supported = {AttnBackend::kFlashAttn};
  EXPECT_EQ(Choose().backend, AttnBackend::kFlashAttn);
  spec_.supported = {AttnBackend::kVideoSparseAttn};
  ExpectFailure(StatusCode::kFailedPrecondition, "wanted any of VIDEO_SPARSE_ATTN");
}

// FastVideo's trap: head size and dtype were asked on one path only.
TEST_F(SelectorTest, MustNotChooseABackendThatCannotServeTheHeadSize) {
  spec_.head_size = 80;
  wishes_.request = AttnBackend::kFlashAttn;
  const Selection selection = Choose();
  EXPECT_EQ(selection.backend, AttnBackend::kTorchSdpa);
  ASSERT_EQ(selection.refusals.size(), 1u);
  EXPECT_EQ(selection.refusals[0].reason, "head size is not 128");
}

TEST_F(SelectorTest, AutomaticPassesOverWhatCannotServeAndSaysWhy) {
  spec_.supported = {AttnBackend::kFlashAttn, AttnBackend::kCudnnAttn};
  spec_.head_size = 80;
  ExpectFailure(StatusCode::kFailedPrecondition, "FLASH_ATTN (automatic): head size is not 128");
  ExpectFailure(StatusCode::kFailedPrecondition, "CUDNN_ATTN (automatic): needs CUDA");
}

TEST_F(SelectorTest, AutomaticNeverPicksAnApproximateBackendUnasked) {
  spec_.supported = {AttnBackend::kSageAttn, AttnBackend::kFlashAttn};
  EXPECT_EQ(Choose().backend, AttnBackend::kFlashAttn);
}

TEST_F(SelectorTest, StrictFailsWithEveryRefusal) {
  wishes_.mode = SelectionMode::kStrict;
  wishes_.force = AttnBackend::kVideoSparseAttn;
  wishes_.request = AttnBackend::kCudnnAttn;
  ExpectFailure(StatusCode::kFailedPrecondition, "VIDEO_SPARSE_ATTN (force)");
  ExpectFailure(StatusCode::kFailedPrecondition, "CUDNN_ATTN (request)");
}

TEST_F(SelectorTest, StrictIsSilentWhereTheWishIsGranted) {
  wishes_.mode = SelectionMode::kStrict;
  wishes_.request = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().backend, AttnBackend::kFlashAttn);
}

TEST_F(SelectorTest, StrictDoesNotFailForEnvironmentOrModelDefault) {
  wishes_.mode = SelectionMode::kStrict;
  wishes_.environment = AttnBackend::kVideoSparseAttn;
  wishes_.model_default = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
}

TEST_F(SelectorTest, StrictLetsCrossAttentionKeepItsShortList) {
  wishes_.mode = SelectionMode::kStrict;
  wishes_.request = AttnBackend::kVideoSparseAttn;
  spec_.role = AttentionRole::kCross;
  EXPECT_EQ(Choose().backend, kAutomaticAnswer);
  // What it lists and cannot have still fails.
  wishes_.request = AttnBackend::kFlashAttn;
  spec_.head_size = 80;
  ExpectFailure(StatusCode::kFailedPrecondition, "head size is not 128");
}

TEST_F(SelectorTest, TheReasonIsOneSentenceForReceipts) {
  wishes_.force = AttnBackend::kVideoSparseAttn;
  wishes_.request = AttnBackend::kFlashAttn;
  EXPECT_THAT(Choose().Reason(), HasSubstr("FLASH_ATTN by request; refused: VIDEO_SPARSE_ATTN"));
}

TEST(DefaultRegistry, HoldsEveryNameOnceWithAnImplementationOrAReason) {
  const BackendRegistry& registry = BackendRegistry::Default();
  EXPECT_EQ(registry.entries().size(), AllAttnBackends().size());
  for (AttnBackend id : AllAttnBackends()) {
    const BackendRegistry::Entry* entry = registry.Find(id);
    ASSERT_NE(entry, nullptr) << AttnBackendName(id);
    EXPECT_EQ(entry->backend == nullptr, !entry->absent_reason.empty()) << AttnBackendName(id);
    EXPECT_FALSE(registry.Summary(id).empty());
    if (entry->backend != nullptr) {
      EXPECT_EQ(entry->backend->id(), id);
    }
  }
}

TEST(DefaultRegistry, ServesEveryFloatingDtypeOnACpu) {
  AttentionSpec spec;
  spec.supported = AllAttnBackends();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    spec.dtype = dtype;
    EXPECT_NO_THROW(Select(spec, {}, BackendRegistry::Default(), QueryCpu()));
  }
}

TEST(DefaultRegistry, NoAttentionRefusesWithASentence) {
  AttentionSpec spec;
  spec.supported = AllAttnBackends();
  const auto reason =
      BackendRegistry::Default().WhyNot(AttnBackend::kNoAttention, spec, QueryCpu());
  ASSERT_TRUE(reason.has_value());
  EXPECT_THAT(*reason, HasSubstr("NO_ATTENTION"));
}

}  // namespace
}  // namespace denoised
