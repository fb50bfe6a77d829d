#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <regex>

#include <fit/io/safetensors.hpp>

#include "catch.hpp"
#include "command.hpp"
#include "support.hpp"

namespace {

using test::succeed;

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

// Quoted for a shell: the folder may have spaces.
const std::string classify = "'" FIT_EXAMPLES_DIR "/classify_images'";
const std::string generate = "'" FIT_EXAMPLES_DIR "/generate_images'";
const std::string model_images = "'" FIT_EXAMPLES_DIR "/model_images'";
const std::string complete_text = "'" FIT_EXAMPLES_DIR "/complete_text'";
const std::string reach = "'" FIT_EXAMPLES_DIR "/reach'";
const std::string scaling_table = "'" FIT_EXAMPLES_DIR "/scaling_table'";
const std::string train_gigapixel = "'" FIT_EXAMPLES_DIR "/train_gigapixel'";

/// A command must fail and say so.
void fail(const std::string& command, const char* expected) {
  const test::CommandResult result = test::run_command(command);
  INFO(command << "\n" << result.text);
  CHECK(!result.success);
  CHECK(test::contains(result.text, expected));
}

}  // namespace

TEST_CASE("classify_images trains, saves, resumes and shows its mistakes", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data", out = folder / "out";
  std::filesystem::create_directory(data);
  write_bars(data, "train", 270);
  write_bars(data, "t10k", 300);
  const std::string arguments = " --data " + data.string() + " --out " + out.string();
  CHECK(test::contains(succeed(classify + arguments + " --epochs 1"), "step 2: held_out_accuracy"));
  const std::string second = succeed(classify + arguments + " --epochs 4 --resume");
  CHECK(test::contains(second, "resumed after 2 steps"));
  CHECK(test::contains(second, "step 8: held_out_accuracy"));
  CHECK(test::contains(second, "after loading it again"));
  for (const char* name : {"classifier.safetensors", "classifier_state.safetensors", "classifier.csv", "classifier.svg",
                           "classifier.jsonl", "mistakes.png"}) {
    CHECK(std::filesystem::file_size(out / name) > 0);
  }
  // A new head on the encoder that was trained, which stays.
  const auto tuned = folder / "tuned", weights = out / "classifier.safetensors";
  succeed(classify + " --data " + data.string() + " --out " + tuned.string() + " --epochs 1 --freeze --from " +
          weights.string());
  const fit::SafetensorsFile before(weights), after(tuned / "classifier.safetensors");
  for (const auto& [name, info] : before.tensors()) {
    const auto old_bytes = before.bytes(name), new_bytes = after.bytes(name);
    INFO(name);
    CHECK(std::equal(old_bytes.begin(), old_bytes.end(), new_bytes.begin()) == name.starts_with("encoder."));
  }
  // Or goes on slowly, far behind a head that begins anew.
  succeed(classify + " --data " + data.string() + " --out " + tuned.string() + " --steps 3 --from " + weights.string());
  const fit::SafetensorsFile later(tuned / "classifier_last.safetensors");
  double of_encoder = 0, of_head = 0;
  for (const auto& [name, info] : before.tensors()) {
    std::vector<float> from(static_cast<std::size_t>(info.size())), to(from.size());
    before.read(name, from.data(), info.size());
    later.read(name, to.data(), info.size());
    for (std::size_t i = 0; i < from.size(); ++i) {
      double& farthest = name.starts_with("encoder.") ? of_encoder : of_head;
      farthest = std::max(farthest, static_cast<double>(std::abs(to[i] - from[i])));
    }
  }
  CHECK(of_encoder > 0);
  CHECK(of_encoder < of_head / 5);
}

#ifdef NDEBUG  // without optimisation it takes half an hour
TEST_CASE("150 steps on Fashion-MNIST come to three images in four", "[examples]") {
  if (!std::filesystem::exists("/usr/share/datasets/fashion-mnist")) return;
  const test::TemporaryFolder folder;
  const std::string text = succeed(classify + " --steps 150 --out " + (folder / "out").string());
  std::smatch match;
  REQUIRE(std::regex_search(text, match, std::regex("test accuracy ([0-9.]+) %")));
  CHECK(std::stod(match[1]) > 75);
}
#endif

TEST_CASE("classify_images says what is wrong with its data and folders", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data";
  const std::string arguments = " --epochs 1 --data " + data.string() + " --out ";
  const auto fails = [&](const std::string& out, const char* expected) { fail(classify + arguments + out, expected); };
  const std::string out = (folder / "out").string();
  fails(out, "no such folder");
  std::filesystem::create_directory(data);
  fails(out, "has neither train-images-idx3-ubyte");
  write_bars(data, "train", 20);
  write_bars(data, "t10k", 20);
  fails(out, "19 images to train on, fewer than a batch");
  CHECK(!std::filesystem::exists(out));
  write_bars(data, "train", 200);
  fails("/proc/none/out", "/proc/none");
  std::filesystem::create_directory(out);
  std::ofstream(folder / "out" / "classifier_state.safetensors") << "not a state";
  fails(out + " --resume", "classifier_state.safetensors");
  fails(out + " --epochs 0", "--epochs");
  fails(out + " --steps 5", "excludes");
  fails(out + " --minutes 5", "excludes");
  fails(out + " --freeze", "--from");
  fails(out + " --from " + (folder / "none").string(), "none: no such file");
  std::ofstream(data / "train-images-idx3-ubyte");
  fails(out, "the file is empty");
  std::filesystem::resize_file(data / "t10k-labels-idx1-ubyte", 12);
  write_bars(data, "train", 200);
  fails(out, "truncated");
}

TEST_CASE("generate_images trains, resumes, draws, denoises and evaluates", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data", out = folder / "out", one = folder / "one.png", other = folder / "other.png";
  std::filesystem::create_directory(data);
  write_bars(data, "train", 140);
  write_bars(data, "t10k", 30);
  const std::string of_data = " --data " + data.string(), to_out = " --out " + out.string();
  const auto step = [&] {
    return fit::SafetensorsFile(out / "generator_state.safetensors").metadata().at("state.step");
  };
  CHECK(test::contains(succeed(generate + of_data + " train --steps 2 --sheet-steps 2" + to_out), "step 2: "));
  CHECK(step() == "2");
  const std::string sheet = test::text_of(out / "generated.png"),
                    weights = test::text_of(out / "generator.safetensors");
  const std::string second = succeed(generate + of_data + " train --steps 3 --sheet-steps 2 --resume" + to_out);
  CHECK(test::contains(second, "resumed after 2 steps"));
  CHECK(test::contains(second, "step 3: "));
  CHECK(step() == "3");
  CHECK(test::contains(sheet, "\x89PNG"));
  CHECK((test::text_of(out / "generated.png") != sheet));
  CHECK((test::text_of(out / "generator_last.safetensors") != weights));

  const std::string model = " --weights " + (out / "generator.safetensors").string();
  const auto draw = [&](const std::string& options, const std::filesystem::path& picture) {
    const std::string text = succeed(generate + " sample" + model + options + " --picture " + picture.string());
    CHECK(test::contains(text, picture.string()));
    return test::text_of(picture);
  };
  const std::string options = " --class bag --count 3 --steps 2 --guidance 0.5 --sampler ddpm_small";
  const std::string picture = draw(options + " --seed 3 --threads 1", one);
  CHECK(test::contains(picture, "\x89PNG"));
  CHECK((draw(options + " --seed 3 --threads 2", other) == picture));
  CHECK((draw(options + " --seed 4", other) != picture));
  const std::string plain = draw(" --count 3 --steps 2", other);
  for (const char* changed :
       {" --count 3 --steps 2 --class 8", " --count 3 --steps 2 --guidance 0",
        " --count 3 --steps 2 --sampler ddpm_large", " --count 3 --steps 3", " --count 4 --steps 2"}) {
    INFO(changed);
    CHECK((draw(changed, other) != plain));
  }

  const std::string clean = succeed(generate + " denoise" + model + of_data + " --level 0.3 --count 4 --steps 2" +
                                    " --picture " + other.string());
  CHECK(test::contains(clean, "root mean square error of a pixel"));
  CHECK(test::contains(test::text_of(other), "\x89PNG"));

  succeed(classify + of_data + to_out + " --epochs 1");
  const std::string judge = " --classifier " + (out / "classifier.safetensors").string();
  const std::string judged =
      succeed(generate + " evaluate" + model + of_data + judge + " --count 12 --steps 2 --class Boot");
  for (const char* part : {"the classifier agrees on", "median distance to training images", "the nearest of all",
                           "of each class:  Boot"}) {
    CHECK(test::contains(judged, part));
  }

  const std::string nothing = (folder / "nothing").string();
  fail(generate + " evaluate" + model + of_data + " --classifier " + nothing, "nothing: no such file");
  fail(generate + " denoise" + model + " --data " + nothing, "no such folder");
  fail(generate + " sample" + model + " --count 10000 --steps 1000 --picture " + nothing + "/a.png",
       "nothing/a.png");  // before it draws
  fail(generate + " sample" + model + " --count 1 --guidance nan --picture " + one.string(), "guidance must be finite");
  fail(generate + " sample --weights " + (out / "classifier.safetensors").string(),
       R"(config.kind: expected "diffusion", the file says "encoder")");
}

TEST_CASE("generate_images says what is wrong with its arguments and data", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data";
  const std::string of_data = " --data " + data.string(), to_out = " --out " + (folder / "out").string();
  fail(generate, "A subcommand is required");
  fail(generate + " train" + of_data + to_out, "no such folder");
  std::filesystem::create_directory(data);
  fail(generate + " train" + of_data + to_out, "has neither train-images-idx3-ubyte");
  write_bars(data, "train", 20);
  write_bars(data, "t10k", 20);
  fail(generate + " train" + of_data + to_out, "20 training images, fewer than a batch");
  CHECK(!std::filesystem::exists(folder / "out"));
  write_bars(data, "train", 64);
  std::filesystem::create_directory(folder / "out");
  std::ofstream(folder / "out" / "generator_state.safetensors") << "not a state";
  fail(generate + " train --resume" + of_data + to_out, "generator_state.safetensors");
  fail(generate + " train --steps 0" + of_data + to_out, "--steps");
  fail(generate + " sample --weights " + (folder / "none").string(), "none: no such file");
  fail(generate + " sample --class hat", "--class");
  fail(generate + " sample --sampler heun", "--sampler");
  fail(generate + " sample --count 0", "--count");
  fail(generate + " denoise --level 1.5", "--level");
}

TEST_CASE("model_images trains, resumes, measures, completes and samples", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data", out = folder / "out";
  std::filesystem::create_directory(data);
  write_bars(data, "train", 40);
  write_bars(data, "t10k", 5);
  for (const std::string kind : {" --plain", " --order snake"}) {
    const std::string arguments = kind + " --data " + data.string() + " --out " + out.string();
    CHECK(test::contains(succeed(model_images + arguments + " train --steps 1"), "step 1: held_out_bits"));
    CHECK(test::contains(succeed(model_images + arguments + " train --steps 2 --resume"), "resumed after 1 steps"));
  }
  const std::string arguments = " --order snake --data " + data.string() + " --out " + out.string();
  CHECK(
      test::contains(succeed(model_images + arguments + " evaluate --count 5"), "bits per dimension of 5 test images"));
  CHECK(test::contains(succeed(model_images + arguments + " complete --count 1 --continuations 2"), "completed.png"));
  CHECK(test::contains(succeed(model_images + arguments + " compare"), "pixels_snake_compare.svg"));
  const std::string sample = model_images + arguments + " sample --count 2 --picture ";
  CHECK(test::contains(succeed(sample + (folder / "a.png").string()), "a.png"));
  CHECK(test::contains(succeed(sample + (folder / "b.png").string() + " --threads 1"), "b.png"));
  CHECK(test::text_of(folder / "a.png") == test::text_of(folder / "b.png"));
  CHECK(std::filesystem::file_size(out / "completed.png") > 0);
  fail(model_images + arguments + " --plain complete --count 0", "--count");
  fail(model_images + arguments + " sample --count 10000 --picture " + (folder / "nothing" / "a.png").string(),
       "nothing/a.png");
  fail(model_images + " --out " + (folder / "none").string() + " sample", "pixels.safetensors");
  fail(model_images + " train --data " + (folder / "none").string(), "no such folder");
  fail(model_images + " --order spiral sample", "--order");
}

TEST_CASE("complete_text trains on files, measures those held out, and writes on", "[examples]") {
  const test::TemporaryFolder folder;
  const auto data = folder / "data", out = folder / "out";
  std::filesystem::create_directory(data);
  for (int i = 0; i < 20; ++i) {
    std::ofstream file(data / ("text" + std::to_string(100 + i)));
    for (int j = 0; j < 150; ++j) file << "line " << j << " of " << i << "\n";
  }
  std::ofstream(data / "binary", std::ios::binary) << std::string(100, '\0');
  const std::string arguments = " --out " + out.string() + " --data " + data.string();
  CHECK(test::contains(succeed(complete_text + arguments + " train --steps 1"), "step 1: held_out_bits"));
  CHECK(test::contains(succeed(complete_text + arguments + " train --steps 2 --resume"), "resumed after 1 steps"));
  CHECK(test::contains(succeed(complete_text + arguments + " evaluate"), "bits per byte of 4096 held-out bytes"));
  // Two files of 2.6 KB that are alike: whoever compresses them needs less than a bit a byte.
  const std::string beside = succeed(complete_text + arguments + " compare");
  CHECK(test::contains(beside, "FIT: "));
  for (const char* program : {"xz -9", "zstd -19"}) {
    CHECK((test::contains(beside, program + std::string(": 0.")) ||
           test::contains(beside, program + std::string(": not"))));
  }
  CHECK(test::contains(test::text_of(out / "text_compare.svg"), "bits per byte"));
  const std::string held_out = test::text_of(data / "text109") + std::string(1, 0) + test::text_of(data / "text119");
  CHECK((test::text_of(out / "text_held_out") == held_out.substr(0, 4096)));
  fail(complete_text + " --data " + data.string() + " --out " + (folder / "none").string() + " compare", "no log");
  const std::string complete = complete_text + " --out " + out.string() + " complete ";
  const std::string first = succeed(complete + "'line 7' --bytes 9");
  CHECK(first.starts_with("line 7"));
  CHECK(succeed(complete + "'line 7' --bytes 9 --threads 1") == first);
  CHECK(succeed(complete + "'line 7' --bytes 9 --seed 8") != first);
  fail(complete + std::string(2048, 'a'), "room for 2048");
  fail(complete + "a --top-p 2", "top_p");
  fail(complete_text + " --out " + (folder / "none").string() + " complete a", "text.safetensors");
  fail(complete_text + " --out " + out.string() + " train", "--data");
  fail(complete_text + " --data " + (folder / "none").string() + " train", "no such file or folder");
  fail(complete_text + " --data " + (data / "binary").string() + " train", "fewer than a window");
}

TEST_CASE("train_gigapixel trains, resumes to the same bits, and draws", "[examples]") {
  const test::TemporaryFolder folder;
  const auto out = folder / "out", other = folder / "other";
  const std::string small = train_gigapixel + " --size 640x320";
  const std::string first = succeed(small + " --steps 2 --recompute none --out " + out.string());
  for (const char* part : {"TFLOP a step", "a picture made by a formula, 640 x 320", "step 1: loss ", "step 2: loss ",
                           "loss of the pictures "}) {
    CHECK(test::contains(first, part));
  }
  for (const char* name : {"picture.png", "part.png"}) CHECK(test::contains(test::text_of(out / name), "\x89PNG"));
  CHECK(test::contains(test::text_of(out / "loss.svg"), "</svg>"));
  const std::string losses = test::text_of(out / "loss.csv");
  CHECK(losses.starts_with("step,seconds,loss,step_seconds\n1,"));
  CHECK(std::count(losses.begin(), losses.end(), '\n') == 3);

  // The steps' rates follow from their number: the same in both runs.
  const std::string state = (out / "state.safetensors").string(), saved = (folder / "saved").string();
  succeed(small + " --steps 2 --recompute stage --threads 1 --out " + other.string() + " --save " + saved);
  CHECK((test::text_of(saved) == test::text_of(state)));
  const std::string more = succeed(small + " --steps 3 --out " + out.string() + " --resume " + state);
  CHECK(test::contains(more, "Resumed after 2 steps"));
  CHECK(!test::contains(more, "step 2:"));
  CHECK(test::text_of(out / "loss.csv").starts_with(losses));
  CHECK(fit::SafetensorsFile(state).metadata().at("state.step") == "3");
  fail(small + " --config large --out " + out.string() + " --resume " + state, "config.data_dim");
  CHECK(test::text_of(out / "loss.csv").starts_with(losses));

  // Another run puts this one's files aside, and begins with a state of its own.
  const std::string before = test::text_of(state);
  succeed(small + " --steps 0 --out " + out.string());
  CHECK((test::text_of(out / "state_before.safetensors") == before));
  CHECK(test::text_of(out / "loss_before.csv").starts_with(losses));
  CHECK(fit::SafetensorsFile(state).metadata().at("state.step") == "0");
}

TEST_CASE("numbers that are none are refused", "[examples]") {
  const test::TemporaryFolder folder;
  const std::string out = " --out " + (folder / "out").string();
  for (const char* number : {"nan", "inf", "-1", "1e999", "x"}) {
    INFO(number);
    fail(classify + out + " --erase " + number, "--erase");
    fail(classify + out + " --minutes " + number, "--minutes");
    fail(complete_text + out + " train --minutes " + number, "--minutes");
    fail(reach + out + " train --pretrain " + number, "--pretrain");
    fail(train_gigapixel + out + " --memory-limit " + number, "--memory-limit");
  }
  CHECK(!std::filesystem::exists(folder / "out"));
  const std::string table = succeed(scaling_table + " --size 6400 --rate 100");
  CHECK(test::contains(table, "more members than groups"));
  fail(scaling_table + " --size 1000 --rate 100", "a multiple of 320, not 1000");
}

TEST_CASE("train_gigapixel ends soon when it is interrupted, with what it has", "[examples]") {
  const test::TemporaryFolder folder;
  const std::string out = (folder / "out").string();
  // Until the first step is done, and then in the second, of some seconds. A job in the background ignores SIGINT.
  const std::string text =
      succeed(train_gigapixel + " --size 1920 --steps 9 --out " + out + " > " + out + "-log & pid=$!; " +
              "until grep -q 'step 1:' " + out + "-log; do sleep 0.1; kill -0 $pid || exit 1; done; " +
              "kill -TERM $pid; wait $pid; test $? -eq 130 && cat " + out + "-log");
  const std::string said = "Interrupted in step ";
  REQUIRE(test::contains(text, said));
  const int step = std::stoi(text.substr(text.find(said) + said.size()));  // 2, but on a fast machine
  CHECK(test::contains(text, ".\nThe state before it is in "));
  CHECK(!test::contains(text, "step " + std::to_string(step) + ": loss"));
  CHECK(fit::SafetensorsFile(folder / "out" / "state.safetensors").metadata().at("state.step") ==
        std::to_string(step - 1));
}

TEST_CASE("train_gigapixel says what is wrong, before it begins", "[examples]") {
  const test::TemporaryFolder folder;
  const auto out = folder / "out";
  const std::string to_out = train_gigapixel + " --steps 1 --out " + out.string();
  for (const char* size :
       {"600", "320x300", "0", "-320", "320000000", "99999999999999999999", "320x", "x320", "320y"}) {
    fail(to_out + " --size=" + size,
         size == std::string("320x300") || size == std::string("600") ? "multiples of 320" : "");
  }
  fail(to_out + " --size 320000", "too large to be counted");
  fail(to_out + " --size 6400 --memory-limit 0.5", "--memory-limit allows 0.50 GB");
  fail(to_out + " --config large --latents 4", "only the base configuration");
  fail(to_out + " --recompute some", "--recompute");
  fail(to_out + " --image " + (folder / "none").string(), "none: cannot be opened");
  std::ofstream(folder / "text") << "no picture";
  fail(to_out + " --size 320 --image " + (folder / "text").string(), "text: neither a PNG nor a JPEG file");
  CHECK(!std::filesystem::exists(out / "loss.csv"));
  fail(train_gigapixel + " --size 320 --out " + (folder / "text").string(), "text");
  fail(to_out + " --size 320 --save " + (folder / "none" / "state").string(), "none/state");
  fail(to_out + " --size 320 --resume " + (folder / "text").string(), "text");
}

TEST_CASE("reach trains its models on its tasks, one length after the other", "[examples]") {
  const test::TemporaryFolder folder;
  const auto out = folder / "out";
  const std::string to_out = " --tests 20 --out " + out.string();
  for (const std::string task : {"markers --length 256", "lists --length 256", "paths", "large_paths"}) {
    double least = 1e9, most = 0;
    for (const char* model : {"fit", "local", "full", "latent"}) {
      const std::string text = succeed(reach + " train --minutes 0.005 --task " + task + " --model " + model + to_out);
      CHECK(test::contains(text, " % of 20 right"));
      const double parameters = std::stod(text.substr(text.find(": ") + 2));
      least = std::min(least, parameters);
      most = std::max(most, parameters);
    }
    INFO(task << ": " << least << " to " << most << " parameters");
    CHECK(most / least < 1.02);
  }
  const std::string grown = reach + " train --length 256 --grow --minutes 0.02" + to_out;
  CHECK(test::contains(succeed(grown), "markers_256_fit_grown_at_128: "));
  const std::string both = " --task lists --length 1024 --grow --pretrain 0.01" + to_out;
  succeed(reach + " train --minutes 0.02" + both);
  CHECK(test::contains(succeed(reach + " evaluate" + both), "lists_1024_fit_pretrained_grown: "));
  succeed(reach + " train --minutes 0.01 --pretrain 0.01 --task paths" + to_out);
  succeed(reach + " show --task paths --out " + out.string());
  for (const char* name :
       {"markers_256_fit_grown.safetensors", "results.svg", "paths.png", "paths_256_fit_pretrained_denoising.csv"}) {
    CHECK(std::filesystem::file_size(out / name) > 0);
  }
  const std::string results = test::text_of(out / "results.csv");
  CHECK(std::count(results.begin(), results.end(), '\n') == 1 + 16 + 3);
  CHECK(test::contains(results, "markers,256,fit,"));
  CHECK(test::contains(results, "markers,256,fit_grown,"));
  // What has ended is not done again; a new trial begins with its first part, whatever a later one has left.
  const std::string before = test::text_of(out / "markers_256_fit_grown.csv");
  const std::string ended = succeed(grown + " --resume");
  CHECK((test::text_of(out / "markers_256_fit_grown.csv") == before));
  CHECK(test::text_of(out / "results.csv").size() == results.size());
  std::filesystem::rename(out / "markers_256_fit_grown_at_128_state.safetensors", folder / "kept");
  succeed(grown + " --seed 8");
  CHECK(!std::filesystem::exists(out / "markers_256_fit_grown_at_128_state_before.safetensors"));
  CHECK(std::filesystem::exists(out / "markers_256_fit_grown_state_before.safetensors"));
  CHECK((test::text_of(out / "markers_256_fit_grown.csv") != before));
  fail(reach + " train --length 1000" + to_out, "128 256 1024 4096 16384 65536 163840 tokens, not 1000");
  fail(reach + " train --length 65536 --model full" + to_out, "goes to 16384 tokens");
  fail(reach + " evaluate --length 128" + to_out, "no such file");
  fail(reach + " train --task mazes" + to_out, "mazes");
  std::ofstream(out / "results.csv") << "other,table\n";
  fail(reach + " train --length 128" + to_out, "results.csv: not a table of results");
}
