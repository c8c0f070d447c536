// FastVideo's selector as a truth table (its rows are lettered a to m), with our differences.
#include "backends/selector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/error.h"
#include "backends/parameters.h"
#include "tests/backends/fake_backends.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

// What each source wishes, in the order of precedence.
struct Wanted {
  std::optional<AttnBackend> force, request, environment, model_default;
  SelectionMode mode = SelectionMode::kPrefer;

  std::vector<Wish> List() const {
    std::vector<Wish> wishes;
    const auto add = [&](SelectionSource source, std::optional<AttnBackend> backend) {
      const bool forced = source == SelectionSource::kForce;
      if (backend) wishes.push_back({source, *backend, "", forced ? "force-7" : ""});
    };
    add(SelectionSource::kForce, force);
    add(SelectionSource::kRequest, request);
    add(SelectionSource::kEnvironment, environment);
    add(SelectionSource::kModelDefault, model_default);
    return wishes;
  }
};

constexpr AttnBackend kAutomaticAnswer = AttnBackend::kTorchSdpa;

class SelectorTest : public ::testing::Test {
 protected:
  SelectorTest() {
    spec_.supported = {AttnBackend::kTorchSdpa, AttnBackend::kFlashAttn, AttnBackend::kSageAttn};
    spec_.head_size = 128;
    spec_.dtype = DType::kBFloat16;
  }

  Selection Choose() const {
    return Select(spec_, wishes_.List(), registry_, device_, wishes_.mode);
  }

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
  Wanted wishes_;
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
  wishes_.request = AttnBackend::kSageAttn;
  wishes_.environment = AttnBackend::kSageAttn;
  const Selection selection = Choose();
  EXPECT_EQ(selection.granted.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(selection.granted.source, SelectionSource::kForce);
  EXPECT_EQ(selection.granted.lease_id, "force-7");
  EXPECT_TRUE(selection.refusals.empty());
}

// FastVideo went straight to automatic here and said nothing. Ours falls to the next source, and
// the selection carries the refusal.
TEST_F(SelectorTest, C_AForceThatIsNotOnTheListFallsToTheNextSourceAndSaysSo) {
  wishes_.force = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
  wishes_.environment = AttnBackend::kFlashAttn;
  const Selection selection = Choose();
  EXPECT_EQ(selection.granted.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(selection.granted.source, SelectionSource::kEnvironment);
  EXPECT_EQ(selection.granted.lease_id, "");
  ASSERT_EQ(selection.refusals.size(), 1u);
  EXPECT_EQ(selection.refusals[0].backend, AttnBackend::kVideoSparseAttn);
  EXPECT_EQ(selection.refusals[0].source, SelectionSource::kForce);
  EXPECT_THAT(selection.refusals[0].reason, HasSubstr("TORCH_SDPA, FLASH_ATTN, SAGE_ATTN"));
}

TEST_F(SelectorTest, D_WithoutAForceTheEnvironmentIsChosen) {
  wishes_.environment = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(Choose().granted.source, SelectionSource::kEnvironment);
}

TEST_F(SelectorTest, E_AnEnvironmentThatIsNotOnTheListMeansAutomatic) {
  wishes_.environment = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
  EXPECT_EQ(Choose().granted.source, SelectionSource::kAutomatic);
}

TEST_F(SelectorTest, F_NoWishMeansAutomatic) {
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
}

TEST_F(SelectorTest, F_AutomaticPassesOverABackendThatYieldsButAWishDoesNot) {
  sdpa_.yields = "another one is faster here";
  const Selection selection = Choose();
  EXPECT_EQ(selection.granted.backend, AttnBackend::kFlashAttn);
  ASSERT_EQ(selection.refusals.size(), 1u);
  EXPECT_EQ(selection.refusals[0].backend, AttnBackend::kTorchSdpa);
  EXPECT_EQ(selection.refusals[0].reason, "another one is faster here");
  wishes_.request = AttnBackend::kTorchSdpa;
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kTorchSdpa);
}

TEST_F(SelectorTest, J_ARequestBeatsTheEnvironment) {
  wishes_.request = AttnBackend::kSageAttn;
  wishes_.environment = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kSageAttn);
  EXPECT_EQ(Choose().granted.source, SelectionSource::kRequest);
}

TEST_F(SelectorTest, J_TheModelDefaultIsTheWeakestNamedSource) {
  wishes_.model_default = AttnBackend::kSageAttn;
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kSageAttn);
  EXPECT_EQ(Choose().granted.source, SelectionSource::kModelDefault);
  wishes_.environment = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kFlashAttn);
}

TEST_F(SelectorTest, K_ADefaultAndARequestThatAreNotOnTheListMeanAutomatic) {
  wishes_.request = AttnBackend::kVideoSparseAttn;
  wishes_.model_default = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
  EXPECT_EQ(Choose().refusals.size(), 2u);
}

TEST_F(SelectorTest, L_EqualInputsGiveEqualAnswers) {
  wishes_.force = AttnBackend::kVideoSparseAttn;
  const Selection first = Choose(), second = Choose();
  EXPECT_EQ(first.granted.backend, second.granted.backend);
  EXPECT_EQ(first.refusals, second.refusals);
}

TEST_F(SelectorTest, M_TheOrderOfTheListDoesNotMatter) {
  const AttnBackend before = Choose().granted.backend;
  std::reverse(spec_.supported.begin(), spec_.supported.end());
  EXPECT_EQ(Choose().granted.backend, before);
}

// FastVideo's trap: once a head size had resolved, a later force was ignored.
TEST_F(SelectorTest, MustNotAnswerFromAStaleCacheAfterAForce) {
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
  wishes_.force = AttnBackend::kFlashAttn;
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kFlashAttn);
  wishes_.force.reset();
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
}

// FastVideo's trap: the list filtered explicit requests only.
TEST_F(SelectorTest, MustNotAnswerAutomaticallyWithWhatTheLayerDoesNotList) {
  spec_.supported = {AttnBackend::kFlashAttn};
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kFlashAttn);
  spec_.supported = {AttnBackend::kVideoSparseAttn};
  ExpectFailure(StatusCode::kFailedPrecondition, "wanted any of VIDEO_SPARSE_ATTN");
}

// FastVideo's trap: head size and dtype were asked on one path only.
TEST_F(SelectorTest, MustNotChooseABackendThatCannotServeTheHeadSize) {
  spec_.head_size = 80;
  wishes_.request = AttnBackend::kFlashAttn;
  const Selection selection = Choose();
  EXPECT_EQ(selection.granted.backend, AttnBackend::kTorchSdpa);
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
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kFlashAttn);
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
  EXPECT_EQ(Choose().granted.backend, AttnBackend::kFlashAttn);
}

TEST_F(SelectorTest, StrictDoesNotFailForEnvironmentOrModelDefault) {
  wishes_.mode = SelectionMode::kStrict;
  wishes_.environment = AttnBackend::kVideoSparseAttn;
  wishes_.model_default = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
}

TEST_F(SelectorTest, StrictLetsCrossAttentionKeepItsShortList) {
  wishes_.mode = SelectionMode::kStrict;
  wishes_.request = AttnBackend::kVideoSparseAttn;
  spec_.role = AttentionRole::kCross;
  EXPECT_EQ(Choose().granted.backend, kAutomaticAnswer);
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

// Takes one parameter, "n", from 1 to 9; 3 where it is absent.
class CountingBuilder : public AttentionMetadataBuilder {
 public:
  std::string Canonical(const MetadataRequest& request) override {
    Parameters parameters(request.parameters_json);
    parameters.Int("n", 3, 1, 9);
    parameters.Finish();
    return parameters.Canonical();
  }
  std::shared_ptr<const AttentionMetadata> Build(const MetadataRequest&) override {
    return nullptr;
  }
};
class CountingBackend : public FakeBackend {
 public:
  using FakeBackend::FakeBackend;
  std::unique_ptr<AttentionMetadataBuilder> MakeBuilder() const override {
    return std::make_unique<CountingBuilder>();
  }
};

class WishParameters : public ::testing::Test {
 protected:
  WishParameters() { spec_.supported = {AttnBackend::kTorchSdpa, AttnBackend::kSageAttn}; }
  Selection Choose(const std::vector<Wish>& wishes) const {
    return Select(spec_, wishes, registry_, {});
  }
  static Wish Sage(SelectionSource source, const std::string& parameters) {
    return {source, AttnBackend::kSageAttn, parameters, ""};
  }

  FakeBackend sdpa_{AttnBackend::kTorchSdpa};
  CountingBackend sage_{AttnBackend::kSageAttn};
  BackendRegistry registry_{
      {{AttnBackend::kTorchSdpa, &sdpa_, "", true}, {AttnBackend::kSageAttn, &sage_, "", false}}};
  AttentionSpec spec_;
};

TEST_F(WishParameters, TheGrantedWishHasThemAsTheBackendReadsThem) {
  for (const char* given : {"", "{}", R"({"n": 3})", R"({ "n" : null })"}) {
    EXPECT_EQ(Choose({Sage(SelectionSource::kRequest, given)}).granted.parameters, R"({"n":3})")
        << given;
  }
  EXPECT_EQ(Choose({Sage(SelectionSource::kForce, R"({"n": 4})")}).granted.parameters,
            R"({"n":4})");
  EXPECT_EQ(Choose({}).granted.parameters, "") << "TORCH_SDPA takes none";
}

TEST_F(WishParameters, ARequestsOwnMistakeIsNamedByItsKeyEvenUnderAForce) {
  const Wish force{SelectionSource::kForce, AttnBackend::kTorchSdpa, "", "force-1"};
  for (const char* given : {R"({"n": 0})", R"({"m": 1})"}) {
    for (const auto& wishes : {std::vector<Wish>{Sage(SelectionSource::kRequest, given)},
                               {force, Sage(SelectionSource::kRequest, given)}}) {
      try {
        Choose(wishes);
        ADD_FAILURE() << given;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
        EXPECT_THAT(error.field(), HasSubstr("attention.parameters."));
      }
    }
  }
}

// A force is checked when it is made; that another model or size cannot have it breaks no job.
TEST_F(WishParameters, AnybodyElsesMistakeIsARefusal) {
  for (SelectionSource source : {SelectionSource::kForce, SelectionSource::kModelDefault}) {
    const Selection selection = Choose({Sage(source, R"({"n": 0})")});
    EXPECT_EQ(selection.granted.backend, AttnBackend::kTorchSdpa);
    ASSERT_EQ(selection.refusals.size(), 1u);
    EXPECT_THAT(selection.refusals[0].reason, HasSubstr("attention.parameters.n"));
  }
}

TEST_F(WishParameters, OneRefusalIsSaidOnceHoweverManyForcesWishIt) {
  spec_.supported = {AttnBackend::kTorchSdpa};
  const Selection selection =
      Choose({Sage(SelectionSource::kForce, ""), Sage(SelectionSource::kForce, R"({"n": 4})"),
              Sage(SelectionSource::kModelDefault, "")});
  EXPECT_EQ(selection.refusals.size(), 2u) << "by source";
}

TEST(SelectionSources, HaveOneSpellingEachAndReadBack) {
  const std::vector<std::string> names = {"force", "request", "environment", "model_default",
                                          "automatic"};
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(SelectionSourceName(kSelectionSources[i]), names[i]);
    EXPECT_EQ(SelectionSourceFromName(names[i]), kSelectionSources[i]);
  }
  EXPECT_FALSE(SelectionSourceFromName("model default"));
  EXPECT_FALSE(SelectionSourceFromName(""));
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

class PreferredTest : public SelectorTest {
 protected:
  Selection Prefer(const std::vector<AttnBackend>& backends) const {
    std::vector<PreferredBackend> preferred;
    for (const AttnBackend id : backends) {
      preferred.push_back({id, "a row of " + std::string(AttnBackendName(id))});
    }
    return Select(spec_, wishes_.List(), registry_, device_, wishes_.mode, preferred);
  }
};

TEST_F(PreferredTest, ThePreferredBackendsAreTriedFirstInTheirOrder) {
  const Selection selection = Prefer({AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa});
  EXPECT_EQ(selection.granted.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(selection.granted.source, SelectionSource::kAutomatic);
  EXPECT_TRUE(selection.refusals.empty());
  EXPECT_THAT(selection.Reason(),
              HasSubstr("automatic, the fastest of those measured: a row of FLASH_ATTN"));
  EXPECT_EQ(Prefer({}).granted.backend, kAutomaticAnswer);
  EXPECT_THAT(Prefer({}).Reason(), testing::Not(HasSubstr("measured")));
}

TEST_F(PreferredTest, OneThatIsOtherwiseOnRequestOnlyMayBePreferred) {
  EXPECT_EQ(Prefer({AttnBackend::kSageAttn}).granted.backend, AttnBackend::kSageAttn);
}

TEST_F(PreferredTest, ListAndLimitsHoldForThemAndThenTheTablesOrderDoes) {
  spec_.head_size = 64;
  const Selection selection =
      Prefer({AttnBackend::kVideoSparseAttn, AttnBackend::kCudnnAttn, AttnBackend::kFlashAttn});
  EXPECT_EQ(selection.granted.backend, kAutomaticAnswer);
  ASSERT_EQ(selection.refusals.size(), 1u) << "what the layer does not list is nobody's wish";
  EXPECT_EQ(selection.refusals[0].backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(selection.refusals[0].source, SelectionSource::kAutomatic);
}

TEST_F(PreferredTest, EveryWishGoesBeforeThem) {
  wishes_.model_default = AttnBackend::kSageAttn;
  EXPECT_EQ(Prefer({AttnBackend::kFlashAttn}).granted.backend, AttnBackend::kSageAttn);
  wishes_.model_default = AttnBackend::kVideoSparseAttn;
  EXPECT_EQ(Prefer({AttnBackend::kFlashAttn}).granted.backend, AttnBackend::kFlashAttn);
}

TEST_F(PreferredTest, APreferredBackendDoesNotYield) {
  sdpa_.yields = "another one is faster";
  EXPECT_EQ(Prefer({}).granted.backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(Prefer({AttnBackend::kTorchSdpa}).granted.backend, AttnBackend::kTorchSdpa);
}

}  // namespace
}  // namespace denoised
