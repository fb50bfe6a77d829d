#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "catch.hpp"
#include "support.hpp"

namespace {

/// What a command prints on both streams, and whether it succeeded.
struct Run {
  std::string text;
  bool success;
};

Run run(const std::string& command) {
  Run result{{}, false};
  std::FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> part;
  while (const std::size_t count = std::fread(part.data(), 1, part.size(), pipe))
    result.text.append(part.data(), count);
  result.success = pclose(pipe) == 0;
  return result;
}

std::string big_endian(std::uint32_t value) {
  std::string bytes;
  for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(value >> shift & 0xff);
  return bytes;
}

/// A data set in MNIST's format whose classes are bars at ten heights.
void write_bars(const std::filesystem::path& folder, const std::string& part, std::uint32_t count) {
  std::string images = big_endian(0x803) + big_endian(count) + big_endian(28) + big_endian(28);
  std::string labels = big_endian(0x801) + big_endian(count);
  fit::Random random(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto label = static_cast<int>(random.below(10));
    for (int y = 0; y < 28; ++y) {
      for (int x = 0; x < 28; ++x) {
        images += static_cast<char>((y / 2 == label ? 200 : 0) + static_cast<int>(random.below(50)));
      }
    }
    labels += static_cast<char>(label);
  }
  std::ofstream(folder / (part + "-images-idx3-ubyte"), std::ios::binary) << images;
  std::ofstream(folder / (part + "-labels-idx1-ubyte"), std::ios::binary) << labels;
}

const std::string classify = std::string(FIT_EXAMPLES_DIR) + "/classify_images";

}  // namespace

TEST_CASE("classify_images trains, saves, resumes and shows its mistakes", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data", out = folder / "out";
  std::filesystem::create_directory(data);
  write_bars(data, "train", 1280);
  write_bars(data, "t10k", 300);
  const std::string arguments = " --data " + data.string() + " --out " + out.string();
  const Run first = run(classify + arguments + " --epochs 1");
  INFO(first.text);
  CHECK(first.success);
  CHECK(test::contains(first.text, "epoch 1: test accuracy"));
  const Run second = run(classify + arguments + " --epochs 4 --resume");
  INFO(second.text);
  CHECK(second.success);
  CHECK(test::contains(second.text, "Resumed after 1 epochs"));
  CHECK(test::contains(second.text, "epoch 4: test accuracy"));
  CHECK(test::contains(second.text, "after loading it again"));
  for (const char* name : {"classifier.safetensors", "state.safetensors", "mistakes.png"}) {
    CHECK(std::filesystem::file_size(out / name) > 0);
  }
}

TEST_CASE("classify_images says what is wrong with its data and folders", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data";
  const std::string arguments = " --epochs 1 --data " + data.string() + " --out ";
  const auto fails = [&](const std::string& out, const char* expected) {
    const Run result = run(classify + arguments + out);
    INFO(result.text);
    CHECK(!result.success);
    CHECK(test::contains(result.text, expected));
  };
  const std::string out = (folder / "out").string();
  fails(out, "no such folder");
  std::filesystem::create_directory(data);
  fails(out, "has neither train-images-idx3-ubyte");
  write_bars(data, "train", 20);
  write_bars(data, "t10k", 20);
  fails(out, "20 training images, fewer than a batch");
  CHECK(!std::filesystem::exists(out));
  write_bars(data, "train", 200);
  fails("/proc/none/out", "/proc/none");
  fails(out + " --resume", "state.safetensors");
  fails(out + " --epochs 0", "--epochs");
  std::ofstream(data / "train-images-idx3-ubyte");
  fails(out, "the file is empty");
  std::filesystem::resize_file(data / "t10k-labels-idx1-ubyte", 12);
  write_bars(data, "train", 200);
  fails(out, "truncated");
}
