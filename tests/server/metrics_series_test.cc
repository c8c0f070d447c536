// The series of a family: their text is prometheus-cpp's own, byte for byte, and they may be looked
// up, forgotten and written at the same time.
#include "server/metrics_series.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <limits>
#include <thread>

namespace denoised {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Bounds = Histogram::BucketBoundaries;
using All = std::vector<const AnySeries*>;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr size_t kPiece = 32 << 10;

// In pieces, as a page is made.
std::string TextOf(const AnySeries& series, size_t* pieces = nullptr) {
  std::string text;
  AnySeries::Place place;
  for (bool done = false; !done;) {
    std::string piece;
    done = series.Append(&place, kPiece, &piece);
    text += piece;
    if (pieces != nullptr) ++*pieces;
  }
  return text;
}

// What prometheus-cpp says of the same metric.
template <typename Metric, typename... Arguments>
class Peer {
 public:
  Peer(const std::string& name, const std::string& help) : family_(name, help, {}) {}
  Metric& Add(const prometheus::Labels& labels, const Arguments&... arguments) {
    return family_.Add(labels, arguments...);
  }
  std::string Text() const { return prometheus::TextSerializer().Serialize(family_.Collect()); }

 private:
  prometheus::Family<Metric> family_;
};

// Label values and numbers that are hard to write.
const std::vector<std::string>& Values() {
  static const std::vector<std::string> kValues = {"",
                                                   "plain",
                                                   "a \"quoted\" one",
                                                   "back\\slash\\",
                                                   "two\nlines\n",
                                                   "\\n",
                                                   "Größe 寸法 \xf0\x9f\x8e\xa5",
                                                   "{}",
                                                   "a,b=\"c\"",
                                                   "\"",
                                                   "\\\"\n",
                                                   " blank ",
                                                   std::string(40000, 'x')};
  return kValues;
}

const std::vector<double>& Numbers() {
  static const std::vector<double> kNumbers = {0,
                                               -0.0,
                                               1,
                                               -1,
                                               7,
                                               1e15,
                                               123456789012345678.0,
                                               9007199254740993.0,
                                               1e16,
                                               1e17,
                                               -1e21,
                                               0.1,
                                               0.05,
                                               9.95,
                                               1 / 3.0,
                                               100.03,
                                               1e-4,
                                               1e-5,
                                               1.5e-7,
                                               123456.789,
                                               1e300,
                                               std::numeric_limits<double>::max(),
                                               std::numeric_limits<double>::min(),
                                               std::numeric_limits<double>::denorm_min(),
                                               kInfinity,
                                               -kInfinity,
                                               std::numeric_limits<double>::quiet_NaN()};
  return kNumbers;
}

TEST(MetricsSeriesTest, GaugesAreWrittenAsPrometheusCppWritesThem) {
  for (const double number : Numbers()) {
    All all;
    Series<Gauge> ours({"g", "Some help.", Gauge::metric_type, {}}, &all);
    Peer<Gauge> peer("g", "Some help.");
    ours.At({})->Set(number);
    peer.Add({}).Set(number);
    EXPECT_EQ(TextOf(ours), peer.Text());
  }
}

TEST(MetricsSeriesTest, LabelsAreSortedAndEscapedAsPrometheusCppDoes) {
  for (const std::string& value : Values()) {
    All all;
    Series<Counter> ours({"c_total", "", Counter::metric_type, {"to", "from", "reason"}}, &all);
    Peer<Counter> peer("c_total", "");
    ours.At({value, "f", "r"})->Increment(2.5);
    peer.Add({{"to", value}, {"from", "f"}, {"reason", "r"}}).Increment(2.5);
    EXPECT_EQ(TextOf(ours), peer.Text());
  }
}

TEST(MetricsSeriesTest, HistogramsAreWrittenAsPrometheusCppWritesThem) {
  for (const Bounds& bounds : {SecondsBuckets(), ErrorBuckets(), TokenBuckets(), Bounds(),
                               Bounds{-1.5, 0, 1 / 3.0, 1e17, 1e300}, Bounds{1, kInfinity}}) {
    for (const bool labelled : {false, true}) {
      const std::vector<std::string> labels =
          labelled ? std::vector<std::string>{"m"} : std::vector<std::string>{};
      All all;
      Series<Histogram, Bounds> ours({"h", "Some help.", Histogram::metric_type, labels, bounds},
                                     &all, bounds);
      Peer<Histogram, Bounds> peer("h", "Some help.");
      Histogram& theirs =
          peer.Add(labelled ? prometheus::Labels{{"m", "a\"b"}} : prometheus::Labels{}, bounds);
      const auto observe = [&](double value) {
        labelled ? ours.At({"a\"b"})->Observe(value) : ours.At({})->Observe(value);
        theirs.Observe(value);
      };
      labelled ? ours.At({"a\"b"}) : ours.At({});
      EXPECT_EQ(TextOf(ours), peer.Text()) << "before anything is observed";
      for (const double value : Numbers()) {
        observe(value);
        EXPECT_EQ(TextOf(ours), peer.Text()) << value;
      }
    }
  }
}

Series<Counter> TwoLabels(All* all) {
  return {{"c_total", "Help.", Counter::metric_type, {"a", "b"}}, all};
}

TEST(MetricsSeriesTest, AFamilyWithoutSeriesIsNotThere) {
  All all;
  Series<Counter> counters = TwoLabels(&all);
  EXPECT_EQ(TextOf(counters), "");
  counters.At({"x", "y"});
  EXPECT_EQ(TextOf(counters),
            "# HELP c_total Help.\n# TYPE c_total counter\nc_total{a=\"x\",b=\"y\"} 0\n");
  counters.Forget([](const AnySeries::Values&) { return true; });
  EXPECT_EQ(TextOf(counters), "");
}

TEST(MetricsSeriesTest, EachOfManyLabelSetsHasASeriesOfItsOwn) {
  All all;
  Series<Counter> counters = TwoLabels(&all);
  // Some are the same when put together, and of so many, places in the table are wanted twice.
  std::vector<AnySeries::Values> sets = {{"", ""},    {"a", "bc"}, {"ab", "c"}, {"abc", ""},
                                         {"", "abc"}, {"b", "a"},  {"a", "b"}};
  for (int i = 0; i < 20000; ++i)
    sets.push_back({std::to_string(i % 150), std::to_string(i / 150)});
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < sets.size(); ++i) {
      counters.At({sets[i][0], sets[i][1]})->Increment(static_cast<double>(i));
    }
  }
  std::string expected = "# HELP c_total Help.\n# TYPE c_total counter\n";
  for (size_t i = 0; i < sets.size(); ++i) {
    EXPECT_EQ(counters.At({sets[i][0], sets[i][1]})->Value(), 2.0 * static_cast<double>(i));
    expected += "c_total{a=\"" + sets[i][0] + "\",b=\"" + sets[i][1] + "\"} " +
                std::to_string(2 * i) + "\n";
  }
  size_t pieces = 0;
  EXPECT_EQ(TextOf(counters, &pieces), expected) << "the oldest first";
  EXPECT_GT(pieces, 10u);
}

TEST(MetricsSeriesTest, WhatIsForgottenBeginsAgainAndTheRestGoesOn) {
  All all;
  Series<Counter> counters = TwoLabels(&all);
  for (int i = 0; i < 300; ++i) counters.At({std::to_string(i), "x"})->Increment(i + 1);
  const auto is_odd = [](const AnySeries::Values& values) {
    EXPECT_EQ(values.at(1), "x");
    return std::stoi(values.at(0)) % 2 == 1;
  };
  EXPECT_EQ(counters.Forget(is_odd), 150u);
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(counters.At({std::to_string(i), "x"})->Value(), i % 2 == 1 ? 0 : i + 1);
  }
  counters.KeepOnly({{"8", "x"}, {"7", "x"}, {"never there", "x"}});
  EXPECT_EQ(TextOf(counters),
            "# HELP c_total Help.\n# TYPE c_total counter\nc_total{a=\"8\",b=\"x\"} 9\n"
            "c_total{a=\"7\",b=\"x\"} 0\n");
}

TEST(MetricsSeriesTest, APageHasWhatStaysOnceWhateverComesAndGoesBetweenItsPieces) {
  All all;
  Series<Counter> counters = TwoLabels(&all);
  const std::string stays(300, 's');
  for (int i = 0; i < 1000; ++i) {
    counters.At({std::to_string(i), i % 2 == 0 ? stays : "goes"});
  }
  std::string text, piece;
  AnySeries::Place place;
  ASSERT_FALSE(counters.Append(&place, kPiece, &text));
  counters.At({"new", "comes"});
  ASSERT_THAT(text, HasSubstr("a=\"0\""));
  counters.Forget([](const AnySeries::Values& values) { return values[0] == "0"; });
  counters.At({"0", stays});  // as what is written already
  counters.Forget([](const AnySeries::Values& values) { return values[1] == "goes"; });
  for (bool done = false; !done; text += piece) {
    piece.clear();
    done = counters.Append(&place, kPiece, &piece);
  }
  for (int i = 0; i < 1000; i += 2) {
    const std::string line = "\nc_total{a=\"" + std::to_string(i) + "\",b=\"" + stays + "\"} 0\n";
    ASSERT_NE(text.find(line), std::string::npos) << i;
    EXPECT_EQ(text.find(line), text.rfind(line)) << i;
  }
  EXPECT_EQ(text.find("# HELP"), text.rfind("# HELP"));
  EXPECT_THAT(text, Not(HasSubstr("a=\"new\"")));
  EXPECT_THAT(text, Not(HasSubstr("a=\"999\",b=\"goes\"")));
}

TEST(MetricsSeriesTest, SeriesAreForgottenAndWrittenBesideThoseWhoMoveThem) {
  All all;
  Series<Histogram, Bounds> series({"h", "", Histogram::metric_type, {"m"}, SecondsBuckets()}, &all,
                                   SecondsBuckets());
  constexpr int kThreads = 3, kRounds = 20000;
  std::atomic<int> running{kThreads};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRounds; ++i) {
        series.At({"stays"})->Observe(t);
        series.At({"goes " + std::to_string(i % 40)})->Observe(t);
      }
      --running;
    });
  }
  while (running > 0) {
    series.Forget([](const AnySeries::Values& values) { return values[0] != "stays"; });
    TextOf(series);
    series.KeepOnly({{"stays"}});
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(TextOf(series), HasSubstr("h_count{m=\"stays\"} 60000\n"));
  EXPECT_EQ(series.Forget([](const AnySeries::Values& values) { return values[0] != "stays"; }),
            1u);
}

}  // namespace
}  // namespace denoised
