#include "backends/attn_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "backends/error.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

constexpr char kVariable[] = "FASTVIDEO_ATTENTION_BACKEND";

class EnvironmentTest : public ::testing::Test {
 protected:
  void TearDown() override { unsetenv(kVariable); }
};

TEST(AttnBackendNames, EveryNameLeadsBackToItsBackend) {
  std::set<std::string_view> names;
  for (AttnBackend id : AllAttnBackends()) {
    names.insert(AttnBackendName(id));
    EXPECT_EQ(BackendNameToEnum(AttnBackendName(id)), id);
  }
  EXPECT_EQ(names.size(), AllAttnBackends().size());
  EXPECT_EQ(AllAttnBackends().back(), AttnBackend::kNoAttention);
}

TEST(AttnBackendNames, LookupIsExactAndCaseSensitive) {
  for (const char* name : {"", "torch_sdpa", " TORCH_SDPA", "TORCH_SDPA ", "SDPA", "TORCH"}) {
    EXPECT_FALSE(BackendNameToEnum(name).has_value()) << name;
  }
}

TEST(AttnBackendNames, TypedSourcesAreTrimmedAndUpperCased) {
  EXPECT_EQ(CoerceAttnBackend("  flash_Attn\n"), AttnBackend::kFlashAttn);
}

TEST(AttnBackendNames, ATypedNameThatIsUnknownIsAnErrorThatListsAllNamesSorted) {
  for (const char* name : {"", "   ", "SDPA"}) {
    try {
      CoerceAttnBackend(name, "attention.backend");
      ADD_FAILURE() << name << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(error.field(), "attention.backend");
      EXPECT_THAT(error.what(), HasSubstr("ATTN_QAT_INFER, BSA_ATTN, CUDNN_ATTN, FLASH_ATTN"));
      EXPECT_THAT(error.what(), HasSubstr("\"" + std::string(name) + "\""));
    }
  }
}

TEST(AttnBackendNames, AHostileNameIsShownShortAndPrintable) {
  const std::string escape = "\x1b[31m", hostile = escape + std::string(100000, 'x');
  try {
    CoerceAttnBackend(hostile);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_LT(std::string(error.what()).size(), 500u);
    EXPECT_EQ(std::string(error.what()).find(escape), std::string::npos);
  }
}

TEST_F(EnvironmentTest, UnsetAndBlankMeanAutomatic) {
  unsetenv(kVariable);
  EXPECT_FALSE(GetEnvVariableAttnBackend().has_value());
  for (const char* blank : {"", "  ", "\t\n"}) {
    setenv(kVariable, blank, 1);
    EXPECT_FALSE(GetEnvVariableAttnBackend().has_value());
  }
}

TEST_F(EnvironmentTest, AKnownNameIsTakenSpeltAsInARequest) {
  for (const char* value : {"TORCH_SDPA", "torch_sdpa", "  Torch_Sdpa\n"}) {
    setenv(kVariable, value, 1);
    EXPECT_EQ(GetEnvVariableAttnBackend(), AttnBackend::kTorchSdpa) << value;
  }
}

TEST_F(EnvironmentTest, AnUnknownNameIsRefusedWithAllNames) {
  setenv(kVariable, "fastest", 1);
  try {
    GetEnvVariableAttnBackend();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), kVariable);
    for (AttnBackend backend : AllAttnBackends()) {
      EXPECT_THAT(error.what(), HasSubstr(std::string(AttnBackendName(backend))));
    }
  }
}

}  // namespace
}  // namespace denoised
