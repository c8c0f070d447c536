// From what was typed to what is asked for: commands, ids, prompts, formats.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "runtime/request_limits.h"
#include "server/cli/command_line.h"
#include "server/cli/generation_flags.h"
#include "server/cli/job_id.h"
#include "server/cli/prompt.h"

namespace denoised::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class Body>
std::string Complaint(const Body& body) {
  try {
    body();
  } catch (const UsageError& error) {
    return "usage: " + std::string(error.what());
  } catch (const CommandError& error) {
    return error.what();
  }
  return "";
}

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLine Read(const std::vector<std::string>& arguments) {
    return ReadCommandLine(arguments, commands_);
  }
  std::string Refusal(const std::vector<std::string>& arguments) {
    return Complaint([&] { Read(arguments); });
  }

  const std::vector<Command> commands_ = {{"jobs", "", "", Uses::kServer, nullptr, ""},
                                          {"log_level", "LEVEL", "", Uses::kAdmin, nullptr, ""},
                                          {"run", "PROMPT", "", Uses::kNeither, nullptr, ""}};
};

TEST_F(CommandLineTest, FlagsMayStandBeforeTheCommand) {
  const CommandLine line = Read({"--server=a:1", "--json", "jobs", "--limit=3"});
  EXPECT_EQ(line.command->name, "jobs");
  EXPECT_THAT(line.arguments, ElementsAre("--server=a:1", "--json", "--limit=3"));
  EXPECT_THAT(Read({"--server", "a:1", "jobs"}).arguments, ElementsAre("--server=a:1"));
  EXPECT_THAT(Read({"--limit=3", "jobs"}).arguments, ElementsAre("--limit=3"));
}

TEST_F(CommandLineTest, AddressesBeforeTheCommandAreForWhoeverTakesThem) {
  const std::vector<std::string> both = {"--server=a:1", "--admin=a:2"};
  const auto with = [&](const char* name) { return Read({both[0], both[1], name}).arguments; };
  EXPECT_THAT(with("jobs"), ElementsAre("--server=a:1"));
  EXPECT_THAT(with("log-level"), ElementsAre("--admin=a:2"));
  EXPECT_THAT(with("run"), ElementsAre());
}

TEST_F(CommandLineTest, HelpAndVersionAreAskedForInEveryUsualWay) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--help"},
                                                    {"-h"},
                                                    {"help"},
                                                    {"help", "--help"},
                                                    {"help", "help"}}) {
    EXPECT_EQ(Read(arguments).asked, CommandLine::Asked::kHelp);
  }
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"help", "log_level"},
                                                    {"help", "log-level"},
                                                    {"-h", "log_level"}}) {
    const CommandLine line = Read(arguments);
    EXPECT_EQ(line.command->name, "log_level");
    EXPECT_EQ(line.arguments.size(), 1u);
  }
  EXPECT_EQ(Read({"--version"}).asked, CommandLine::Asked::kVersion);
  EXPECT_EQ(Read({"version"}).asked, CommandLine::Asked::kVersion);
}

TEST_F(CommandLineTest, WrongUseIsNamed) {
  EXPECT_THAT(Refusal({}), HasSubstr("a command is missing"));
  EXPECT_THAT(Refusal({"--json"}), HasSubstr("a command is missing"));
  EXPECT_THAT(Refusal({"job"}), AllOf(HasSubstr("unknown command 'job'"), HasSubstr("'jobs'?")));
  EXPECT_THAT(Refusal({"help", "job"}), HasSubstr("did you mean 'jobs'?"));
  EXPECT_THAT(Refusal({"-x", "jobs"}), HasSubstr("-x"));
  EXPECT_THAT(Refusal({"--server"}), HasSubstr("needs a value"));
  EXPECT_THAT(Refusal({"help", "jobs", "run"}), HasSubstr("too many"));
}

// Pages of two.
ListPage Pages(const std::vector<std::string>& ids) {
  return [ids](const std::string& token) {
    v1::ListJobsResponse page;
    const size_t begin = token.empty() ? 0 : std::stoul(token);
    for (size_t i = begin; i < std::min(ids.size(), begin + 2); ++i)
      page.add_jobs()->set_id(ids[i]);
    if (begin + 2 < ids.size()) page.set_next_page_token(std::to_string(begin + 2));
    return page;
  };
}

TEST(JobIds, TheFirstDigitsDoWhereTheyAreOneJobs) {
  const ListPage list = Pages({"aa11", "ab22", "ac33", "bd44", "be55"});
  EXPECT_EQ(ResolveJobId("bd", list), "bd44");
  EXPECT_EQ(ResolveJobId("be5", list), "be55") << "on the last page";
  EXPECT_EQ(ResolveJobId("AB", list), "ab22");
}

TEST(JobIds, SeveralAreListedAndNoneIsSaid) {
  const ListPage list = Pages({"aa11", "ab22", "ac33", "bd44"});
  EXPECT_THAT(Complaint([&] { ResolveJobId("a", list); }),
              AllOf(HasSubstr("3 jobs"), HasSubstr("aa11, ab22, ac33")));
  EXPECT_THAT(Complaint([&] { ResolveJobId("cc", list); }),
              AllOf(HasSubstr("NOT_FOUND"), HasSubstr("'cc'")));
  EXPECT_THAT(Complaint([&] { ResolveJobId("", list); }), HasSubstr("usage: "));
}

TEST(JobIds, WholeOnesAndOtherTextAreTheServersToJudge) {
  const ListPage never = [](const std::string&) -> v1::ListJobsResponse {
    throw CommandError("nobody needs a list");
  };
  const std::string whole(32, 'a');
  EXPECT_EQ(ResolveJobId(whole, never), whole);
  EXPECT_EQ(ResolveJobId(std::string(32, 'A'), never), whole);
  EXPECT_EQ(ResolveJobId("nope", never), "nope");
  EXPECT_EQ(ResolveJobId(whole + "a", never), whole + "a");
}

class PromptTest : public ::testing::Test {
 protected:
  ~PromptTest() override { unlink(path_.c_str()); }
  std::string FromFile(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return ReadPrompt({}, path_);
  }
  const std::string path_ = ::testing::TempDir() + "denoised_prompt_" + std::to_string(getpid());
};

TEST_F(PromptTest, ComesFromTheArgumentOrAFile) {
  EXPECT_EQ(ReadPrompt({"a red circle"}, ""), "a red circle");
  EXPECT_EQ(ReadPrompt({""}, ""), "");
  EXPECT_EQ(ReadPrompt({"@home"}, ""), "@home");
  EXPECT_EQ(FromFile("two\nlines\n"), "two\nlines");
  EXPECT_EQ(FromFile("windows\r\n"), "windows");
  EXPECT_EQ(FromFile("\xef\xbb\xbfmarked"), "marked");
  EXPECT_EQ(FromFile("blank at the end \n\n"), "blank at the end \n");
}

TEST_F(PromptTest, IsNeededOnceAndMustFit) {
  EXPECT_THAT(Complaint([] { ReadPrompt({}, ""); }), HasSubstr("an argument is missing: PROMPT"));
  EXPECT_THAT(Complaint([] { ReadPrompt({"a"}, "b"); }), HasSubstr("not both"));
  EXPECT_THAT(Complaint([] { ReadPrompt({}, "/no/such/file"); }), HasSubstr("/no/such/file"));
  EXPECT_THAT(Complaint([] { ReadPrompt({}, "/tmp"); }), HasSubstr("/tmp"));
  EXPECT_THAT(Complaint([&] { FromFile("\n"); }), HasSubstr("is empty"));
  const auto most = static_cast<size_t>(WholeLimit("prompt").max);
  EXPECT_EQ(FromFile("\xef\xbb\xbf" + std::string(most, 'x') + "\r\n").size(), most);
  EXPECT_THAT(Complaint([&] { FromFile(std::string(most + 1, 'x')); }), HasSubstr("65536 bytes"));
  EXPECT_THAT(Complaint([&] { FromFile(std::string(3 * most, 'x')); }), HasSubstr("65536 bytes"));
}

TEST(OutputFormat, IsOfTheEndingOrOfTheFlag) {
  EXPECT_EQ(FormatOf({"a.mp4", {}}), v1::MP4);
  EXPECT_EQ(FormatOf({"a.b/c.GIF", {}}), v1::GIF);
  EXPECT_EQ(FormatOf({"a.b/c", v1::PNG}), v1::PNG);
  EXPECT_EQ(FormatOf({"-", {}}), v1::ARTIFACT_FORMAT_UNSPECIFIED);
  EXPECT_EQ(FormatOf({"-", v1::NPY}), v1::NPY);
  EXPECT_EQ(FormatOf({"/dev/null", {}}), v1::ARTIFACT_FORMAT_UNSPECIFIED);
  EXPECT_THAT(Complaint([] { FormatOf({"", {}}); }), HasSubstr("-o FILE"));
  EXPECT_THAT(Complaint([] { FormatOf({"a.avi", {}}); }), HasSubstr(".mp4"));
  EXPECT_THAT(Complaint([] { FormatOf({"a.mp4/b", {}}); }), HasSubstr(".mp4"));
  EXPECT_THAT(Complaint([] { FormatOf({"a.mp4", v1::GIF}); }), HasSubstr("--format is gif"));
}

TEST(OutputFormat, ListsNameTheFlagAndTheWrongWord) {
  v1::GenerationRequest request;
  const Flag flag = FormatsFlag(&request);
  flag.set("mp4,GIF,safetensors");
  EXPECT_THAT(request.formats(), ElementsAre(v1::MP4, v1::GIF, v1::SAFETENSORS));
  for (const char* text :
       {"avi", "mp4,avi", "mp4,", ",", "", "mp4 gif", "artifact_format_unspecified"}) {
    v1::GenerationRequest other;
    EXPECT_THAT(Complaint([&] { FormatsFlag(&other).set(text); }), HasSubstr("--formats"));
  }
  EXPECT_THAT(Complaint([&] { FormatsFlag(&request).set("mp4"); }), HasSubstr("twice"));
}

TEST(GenerationFlags, EveryFieldWithAnotherNameIsFound) {
  v1::GenerationRequest request;
  const std::vector<Flag> flags = GenerationFlags(&request);
  for (const char* field : {"negative_prompt", "num_inference_steps", "guidance_scale",
                            "num_frames", "preview.max_side", "preview.every_steps",
                            "attention.backend", "attention.parameters.window"}) {
    const std::string name = FlagOfField(field);
    const bool there = std::any_of(flags.begin(), flags.end(),
                                   [&](const Flag& flag) { return flag.name == name; });
    EXPECT_TRUE(there) << field << " is set by no --" << name;
  }
  EXPECT_EQ(FlagOfField("height"), "");
  EXPECT_EQ(FlagOfField(""), "");
}

TEST(GenerationFlags, StrictCanBeSwitchedOff) {
  v1::GenerationRequest request;
  ParseFlags(GenerationFlags(&request), {"--strict=false"});
  EXPECT_EQ(request.attention().policy(), v1::PREFER);
  ParseFlags(GenerationFlags(&request), {"--strict"});
  EXPECT_EQ(request.attention().policy(), v1::STRICT);
}

}  // namespace
}  // namespace denoised::cli
