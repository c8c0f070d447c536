// The flag table itself, addresses, and what is said of a wrong one.
#include "server/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/address.h"

namespace denoised {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What the body complains of; "" where it does not.
template <class Body>
std::string Complaint(const Body& body) {
  try {
    body();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

class FlagsTest : public ::testing::Test {
 protected:
  std::vector<std::string> Parse(const std::vector<std::string>& arguments,
                                 size_t max_rest = SIZE_MAX) {
    return ParseFlags(flags_, arguments, max_rest);
  }
  std::string Refusal(const std::vector<std::string>& arguments, size_t max_rest = SIZE_MAX) {
    return Complaint([&] { Parse(arguments, max_rest); });
  }

  std::string out_, name_;
  bool quick_ = false;
  int64_t steps_ = 0;
  double guidance_ = 0;
  const std::vector<Flag> flags_ = {
      {"output", "FILE", "", "Where.", SetString(&out_), "o"},
      {"long_name", "X", "", "A name.", SetString(&name_)},
      {"steps", "N", "", "Steps.", SetInt("steps", 1, 1000, [this](int64_t n) { steps_ = n; })},
      {"guidance", "X", "", "Scale.",
       SetDouble("guidance", 0, 100, [this](double x) { guidance_ = x; })},
      {"quick", "", "", "Hurry.", SetBool("quick", &quick_), "q"},
      {"secret", "X", "", "", SetString(&name_)}};
};

TEST_F(FlagsTest, ArgumentsAndFlagsMix) {
  EXPECT_THAT(Parse({"a", "-o", "x.mp4", "b", "--long-name=1=2", "--", "--c"}),
              ElementsAre("a", "b", "--c"));
  EXPECT_EQ(out_, "x.mp4");
  EXPECT_EQ(name_, "1=2");
  EXPECT_FALSE(quick_);
}

TEST_F(FlagsTest, ShortFlagsTakeTheirValueInEveryUsualWay) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"-o", "x"}, {"-o=x"}, {"-ox"}}) {
    out_.clear();
    EXPECT_THAT(Parse(arguments), ElementsAre());
    EXPECT_EQ(out_, "x");
  }
  EXPECT_THAT(Refusal({"-output=x"}), HasSubstr("did you mean --output?"));
}

TEST_F(FlagsTest, TextThatNoFlagIsSpelledLikeIsAnArgument) {
  for (const char* text :
       {"-", "-5 degrees, snow", "- a list", "-a red circle", "--", "-5", "-é", "--not a flag=1"}) {
    EXPECT_THAT(Parse({"--", text}), ElementsAre(text));
    if (std::string(text) != "--") {
      EXPECT_THAT(Parse({text}), ElementsAre(text));
    }
  }
}

TEST_F(FlagsTest, AFlagAndItsValueInOneArgumentAreNotTakenForText) {
  EXPECT_THAT(Refusal({"--steps 5"}), AllOf(HasSubstr("one argument"), HasSubstr("--steps")));
  EXPECT_THAT(Refusal({"-o a.mp4"}), HasSubstr("-o"));
  EXPECT_THAT(Parse({"--", "-o a.mp4"}), ElementsAre("-o a.mp4"));
}

TEST_F(FlagsTest, AfterTwoDashesComeAsManyArgumentsAsAreTaken) {
  EXPECT_THAT(Parse({"--", "-5 degrees", "-o", "x"}, 1), ElementsAre("-5 degrees"));
  EXPECT_EQ(out_, "x");
  EXPECT_THAT(Parse({"--", "--steps=x", "-q"}), ElementsAre("--steps=x", "-q")) << "no limit";
  EXPECT_THAT(Parse({"--", "a", "b"}, 1), ElementsAre("a", "b")) << "the caller counts them";
}

TEST_F(FlagsTest, AMissingValueIsNotTheNextFlag) {
  EXPECT_THAT(Refusal({"-o", "--steps=3"}), HasSubstr("--output needs a value"));
  EXPECT_THAT(Refusal({"-o", "--", "x"}), HasSubstr("--output needs a value"));
  EXPECT_THAT(Refusal({"-o"}), HasSubstr("--output=FILE"));
  Parse({"--long_name", "-unknown"});
  EXPECT_EQ(name_, "-unknown");
}

TEST_F(FlagsTest, NumbersSayTheirRangeAndWhatWasGiven) {
  for (const char* text : {"7.5", "", "0", "1001", "-3", "0x10", "1e3", " 5", "5 ", "nan", "1_0"}) {
    EXPECT_EQ(Refusal({"--steps", text}),
              "--steps is a whole number from 1 to 1000, got '" + std::string(text) + "'");
  }
  for (const char* text :
       {"nan", "inf", "-inf", "1e400", "0x10", "", "-0.1", "100.5", "3,5", "x"}) {
    EXPECT_EQ(Refusal({"--guidance", text}),
              "--guidance is a number from 0 to 100, got '" + std::string(text) + "'");
  }
  Parse({"--guidance=1.5e1", "--steps=1000"});
  EXPECT_EQ(guidance_, 15);
  EXPECT_EQ(steps_, 1000);
}

TEST_F(FlagsTest, EveryDigitOfALargeNumberIsKeptAndPrinted) {
  int64_t seed = 0;
  const auto set = SetInt("seed", 0, INT64_MAX, [&](int64_t n) { seed = n; });
  set("9223372036854775807");
  EXPECT_EQ(seed, INT64_MAX);
  EXPECT_EQ(Complaint([&] { set("9223372036854775808"); }),
            "--seed is a whole number from 0 to 9223372036854775807, got '9223372036854775808'");
}

TEST_F(FlagsTest, SwitchesAreSwitchedOffByFalse) {
  Parse({"--quick"});
  EXPECT_TRUE(quick_);
  Parse({"--quick=false"});
  EXPECT_FALSE(quick_);
  EXPECT_THAT(Refusal({"--quick=0"}), HasSubstr("true or false"));
}

TEST_F(FlagsTest, UnknownFlagsNameTheNearest) {
  EXPECT_EQ(Refusal({"--stepz=3"}), "unknown flag --stepz; did you mean --steps?");
  EXPECT_THAT(Refusal({"--num_inference_steps=3"}), HasSubstr("did you mean --steps?"));
  EXPECT_THAT(Refusal({"--guidance_scale=3"}), HasSubstr("did you mean --guidance?"));
  EXPECT_THAT(Refusal({"--guid=3"}), HasSubstr("did you mean --guidance?"));
  EXPECT_THAT(Refusal({"-x"}), HasSubstr("see --help"));
  EXPECT_THAT(Refusal({"--secrets=1"}), HasSubstr("see --help")) << "what help hides stays hidden";
  EXPECT_THAT(Refusal({"--steps=1", "--steps=2"}), HasSubstr("twice"));
}

TEST_F(FlagsTest, HelpShowsEveryFlagThatHasOne) {
  const std::string help = FlagsHelp(flags_);
  EXPECT_THAT(help, HasSubstr("  -o, --output=FILE\n      Where.\n"));
  EXPECT_EQ(help.find("secret"), std::string::npos);
}

TEST(Nearest, IsASlipOrAPart) {
  const std::vector<std::string> known = {"generate", "jobs", "watch", "fetch", "force", "leases"};
  EXPECT_EQ(Nearest("generat", known), "generate");
  EXPECT_EQ(Nearest("jbos", known), "jobs");
  EXPECT_EQ(Nearest("gen", known), "generate");
  EXPECT_EQ(Nearest("lease", known), "leases");
  EXPECT_EQ(Nearest("make", known), "");
  EXPECT_EQ(Nearest("x", known), "");
  EXPECT_EQ(Nearest("", known), "");
}

TEST(DurationsTest, HaveUnits) {
  using std::chrono::milliseconds;
  EXPECT_EQ(ParseDuration("t", "250ms"), milliseconds(250));
  EXPECT_EQ(ParseDuration("t", "1.5s"), milliseconds(1500));
  EXPECT_EQ(ParseDuration("t", "2m"), milliseconds(120000));
  EXPECT_EQ(ParseDuration("t", "1h"), milliseconds(3600000));
  for (const char* text : {"", "5", "s", "-1s", "5 s", "infs", "nanh", "1e300h", "5sec"}) {
    EXPECT_THROW(ParseDuration("t", text), UsageError) << text;
  }
  EXPECT_THAT(Complaint([] { ParseDuration("t", "99999d"); }), HasSubstr("at most ten years"));
  for (const char* text : {"0s", "0.1ms"}) {
    EXPECT_EQ(ParseDuration("t", text), milliseconds(0));
    EXPECT_THROW(ParsePositiveDuration("t", text), UsageError) << text;
  }
}

TEST(AddressTest, IsAHostAndAPort) {
  EXPECT_EQ(ParseAddress("server", "localhost:50051", 1).ToString(), "localhost:50051");
  EXPECT_EQ(ParseAddress("server", "[::1]:1", 1).ToString(), "[::1]:1");
  EXPECT_EQ(ParseAddress("listen", "127.0.0.1:0").port, 0);
}

TEST(AddressTest, WhatIsWrongIsSaid) {
  const auto refusal = [](const std::string& text) {
    return Complaint([&] { ParseAddress("server", text, 1); });
  };
  for (const char* text : {"", "a", "a:", ":1", "a:0", "a:65536", "a:1x", "::1:5", "a b:1",
                           "[::1:2", "http://a:1", "a:1/", "a:-1", "a:+1"}) {
    EXPECT_THAT(refusal(text), AllOf(HasSubstr("--server is HOST:PORT with a port from 1 to 65535"),
                                     HasSubstr("got '" + std::string(text) + "'")));
  }
  EXPECT_THAT(refusal("http://a:1"), HasSubstr("http:// in front"));
  EXPECT_THAT(refusal("localhost"), HasSubstr("the port is missing"));
  EXPECT_THAT(refusal("50051"), HasSubstr("the host is missing"));
  EXPECT_THAT(refusal(":50051"), HasSubstr("the host is missing"));
}

}  // namespace
}  // namespace denoised
