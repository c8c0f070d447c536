// Scopes, schedules and budgets as they are typed.
#include "server/cli/lease_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "server/cli/generation_flags.h"
#include "server/cli/schedule_flag.h"
#include "tests/temporary_folder.h"

namespace denoised::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

template <class Body>
std::string Complaint(const Body& body) {
  try {
    body();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

v1::ForceBackendRequest Read(const std::vector<std::string>& arguments,
                             const std::string& prefix = "") {
  v1::ForceBackendRequest request;
  std::vector<Flag> flags = LeaseFlags(prefix, [&] { return &request; });
  for (Flag& flag : TermFlags(&request)) flags.push_back(std::move(flag));
  ParseFlags(flags, arguments);
  return request;
}

TEST(LeaseFlags, EveryPartOfAScopeIsRead) {
  const v1::ForceBackendRequest request =
      Read({"--model=shapes", "--role", "cross", "--layers=0-5", "--steps", "4", "--sigma=0.2-0.9",
            "--tenant=studio", "--job=63b4", "--share=20%", "--strict", "--generation=17"});
  const v1::LeaseScope& scope = request.scope();
  EXPECT_EQ(scope.model(), "shapes");
  EXPECT_EQ(scope.role(), "cross");
  EXPECT_EQ(scope.layers().first(), 0);
  EXPECT_EQ(scope.layers().last(), 5);
  EXPECT_EQ(scope.steps().first(), 4);
  EXPECT_EQ(scope.steps().last(), 4);
  EXPECT_EQ(scope.sigma().low(), 0.2);
  EXPECT_EQ(scope.sigma().high(), 0.9);
  EXPECT_EQ(scope.tenant(), "studio");
  EXPECT_EQ(scope.job_id(), "63b4");
  EXPECT_EQ(scope.share_percent(), 20);
  EXPECT_EQ(request.policy(), v1::STRICT);
  EXPECT_EQ(request.expected_generation(), 17u);
  EXPECT_FALSE(Read({}).has_scope()) << "nothing said is nothing sent";
}

TEST(LeaseFlags, TermsAreRead) {
  const v1::ForceBackendRequest request =
      Read({"--ttl=90s", "--reason=why", "--parameters={\"sparsity\": 0.5}",
            "--budget=relative_l2 p99 < 0.02 over 200"});
  EXPECT_EQ(request.ttl().seconds(), 90);
  EXPECT_EQ(request.reason(), "why");
  EXPECT_EQ(request.parameters().fields().at("sparsity").number_value(), 0.5);
  EXPECT_EQ(request.budget().metric(), "relative_l2");
  EXPECT_EQ(request.budget().statistic(), "p99");
  EXPECT_EQ(request.budget().limit(), 0.02);
  EXPECT_EQ(request.budget().samples(), 200);
}

TEST(LeaseFlags, AWrongValueNamesItsFlag) {
  for (const std::string name : {"layers", "steps"}) {
    for (const std::string value : {"", "5-0", "a-b", "-1", "1-2-3", "1.5", "1-"}) {
      EXPECT_THAT(Complaint([&] { Read({"--" + name + "=" + value}); }), HasSubstr("--" + name))
          << value;
    }
  }
  for (const char* value : {"", "0.9-0.2", "high", "0.1-inf"}) {
    EXPECT_THAT(Complaint([&] { Read({"--sigma=" + std::string(value)}); }), HasSubstr("--sigma"));
  }
  for (const char* value : {"", "0", "0%", "101%", "-1%", "%", "half", "20%%"}) {
    EXPECT_THAT(Complaint([&] { Read({"--share=" + std::string(value)}); }), HasSubstr("--share"));
  }
  EXPECT_THAT(Complaint([&] { Read({"--role=vae"}); }), HasSubstr("--role"));
  EXPECT_THAT(Complaint([&] { Read({"--budget=fast"}); }),
              AllOf(HasSubstr("--budget"), HasSubstr("relative_l2 p99 < 0.02 over 200")));
  EXPECT_THAT(Complaint([&] { Read({"--parameters=[1]"}); }), HasSubstr("--parameters"));
  EXPECT_THAT(Complaint([&] { Read({"--generation=-1"}); }), HasSubstr("--generation"));
  EXPECT_THAT(Complaint([&] { Read({"--what_if_layers=x"}, "what_if_"); }),
              HasSubstr("--what_if_layers"));
}

TEST(LeaseFlags, APercentIsWithOrWithoutItsSign) {
  EXPECT_EQ(ParsePercent("share", "20%"), 20);
  EXPECT_EQ(ParsePercent("share", "0.5"), 0.5);
  EXPECT_EQ(ParsePercent("share", "100"), 100);
}

TEST(LeaseFlags, FieldsOfTheServerAreNamedAsFlags) {
  EXPECT_EQ(FlagOfField("attention.schedule[2].layers"), "schedule");
  EXPECT_EQ(FlagOfField("attention.schedule"), "schedule");
  EXPECT_EQ(FlagOfField("attention.parameters.x"), "param");
  EXPECT_EQ(FlagOfField("scope.share_percent"), "share");
  EXPECT_EQ(FlagOfField("attention.schedules"), "");
}

// ---- schedules

constexpr char kSchedule[] = R"( [
  {"steps": "0-4", "layers": "3", "role": "self", "backend": "reference", "strict": true},
  {"sigma": "0.2-0.9", "backend": "VIDEO_SPARSE_ATTN", "parameters": {"sparsity": 0.5}}])";

TEST(ScheduleFlag, IsReadFromTheCommandLineAndFromAFile) {
  v1::AttentionOptions typed, from_file;
  SetSchedule(kSchedule, &typed);
  ASSERT_EQ(typed.schedule_size(), 2);
  EXPECT_EQ(typed.schedule(0).backend(), "REFERENCE");
  EXPECT_EQ(typed.schedule(0).role(), "self");
  EXPECT_EQ(typed.schedule(0).steps().last(), 4);
  EXPECT_EQ(typed.schedule(0).layers().first(), 3);
  EXPECT_EQ(typed.schedule(0).policy(), v1::STRICT);
  EXPECT_FALSE(typed.schedule(1).has_steps());
  EXPECT_EQ(typed.schedule(1).sigma().high(), 0.9);
  EXPECT_EQ(typed.schedule(1).parameters().fields().at("sparsity").number_value(), 0.5);
  const TemporaryFolder folder;
  const std::string path = folder.path() / "schedule.json";
  std::ofstream(path) << kSchedule;
  SetSchedule(path, &from_file);
  EXPECT_EQ(from_file.SerializeAsString(), typed.SerializeAsString());
}

TEST(ScheduleFlag, WhatIsNoneIsRefusedByTheRulesIndex) {
  const auto complaint = [](const std::string& text) {
    v1::AttentionOptions options;
    return Complaint([&] { SetSchedule(text, &options); });
  };
  EXPECT_THAT(complaint("/no/such/file"),
              AllOf(HasSubstr("--schedule"), HasSubstr("No such file")));
  EXPECT_THAT(complaint("[{]"), HasSubstr("--schedule is not JSON"));
  EXPECT_THAT(complaint("[1]"), HasSubstr("--schedule[0]"));
  EXPECT_THAT(complaint(R"([{"backend": "REFERENCE"}, {"backend": "FAST"}])"),
              HasSubstr("--schedule[1]"));
  EXPECT_THAT(complaint(R"([{"steps": "0-4"}])"), HasSubstr("--schedule[0]"));
  EXPECT_THAT(complaint(R"([{"backend": "REFERENCE", "steps": "4-0"}])"), HasSubstr("steps"));
  EXPECT_THAT(complaint(R"([{"backend": "REFERENCE", "step": "4"}])"),
              AllOf(HasSubstr("--schedule[0]"), HasSubstr("step")));
}

}  // namespace
}  // namespace denoised::cli
