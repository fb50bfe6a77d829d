#include <fit/io/safetensors.hpp>

#include "catch.hpp"
#include "support.hpp"

#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <optional>
#include <set>
#include <thread>

#if FIT_POSIX_FILES
#include <sys/wait.h>
#endif

namespace {

namespace fs = std::filesystem;
using fit::Index;

void write_bytes(const fs::path& path, std::string_view bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(stream.good());
}

std::string read_bytes(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write_atomically(const fs::path& path, std::string_view bytes) {
  fit::AtomicFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

/// Works in a folder, and then where it was before.
class WorkingFolder {
 public:
  explicit WorkingFolder(const fs::path& path) { fs::current_path(path); }
  ~WorkingFolder() { fs::current_path(before_); }

 private:
  fs::path before_ = fs::current_path();
};

}  // namespace

TEST_CASE("a file that is replaced while it is read is the old one or the new one", "[files]") {
  const test::TemporaryFolder folder;
  const std::vector<float> values(10000, 1.0f);
  for (const Index size : {Index{10}, Index{10000}}) {
    fit::write_safetensors(folder / std::to_string(size),
                           std::vector<fit::SafetensorsEntry>{{"a", fit::DType::F32, {size}, values.data()}});
  }
  fs::copy_file(folder / "10", folder / "x");
  std::atomic<bool> done = false;
  std::thread writer([&] {
    for (int i = 0; !done; ++i) {
      std::error_code ignored;
      fs::create_hard_link(folder / (i % 2 == 0 ? "10000" : "10"), folder / "next", ignored);
      fs::rename(folder / "next", folder / "x", ignored);
    }
  });
  Index small = 0, large = 0;
  std::string error;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);  // should the writer have to wait
  for (int i = 0; error.empty() && (i < 20000 || (small * large == 0 && std::chrono::steady_clock::now() < until));
       ++i) {
    try {
      const Index size = fit::SafetensorsFile(folder / "x").info("a").size();
      ++(size == 10 ? small : large);
    } catch (const fit::Error& caught) {
      error = caught.what();
    }
  }
  done = true;
  writer.join();
  CHECK(error == "");
  CHECK(small > 0);
  CHECK(large > 0);
}

TEST_CASE("a file name without a folder is one in the working folder", "[files]") {
  const test::TemporaryFolder folder;
  const float value = 3;
  {
    const WorkingFolder working(folder / ".");
    write_bytes(".x.safetensors.fit-0123456789abcdef.tmp", "left by a process that was killed");
    fit::write_safetensors("x.safetensors", std::vector<fit::SafetensorsEntry>{{"a", fit::DType::F32, {}, &value}});
    float read = 0;
    fit::SafetensorsFile("x.safetensors").read("a", &read, 1);
    CHECK(read == 3);
  }
  CHECK(names_in(folder / ".") == std::set<std::string>{"x.safetensors"});
}

TEST_CASE("a rename that fails leaves no temporary file", "[files]") {
  const test::TemporaryFolder folder;
  fit::AtomicFile file(folder / "x");
  file.write("new", 3);
  fs::create_directory(folder / "x");
  CHECK(test::contains(test::error_of([&] { file.commit(); }), (folder / "x").string() + ": cannot replace: "));
  CHECK(names_in(folder / ".") == std::set<std::string>{"x"});
  CHECK(test::contains(test::error_of([&] { file.commit(); }), "given up before"));
  CHECK(test::contains(test::error_of([&] { file.write("new", 3); }), "given up before"));
  CHECK(fs::is_directory(folder / "x"));
}

TEST_CASE("bytes come in the order in which they were written, in pieces of any size", "[files]") {
  const test::TemporaryFolder folder;
  std::string expected;
  {
    fit::AtomicFile file(folder / "x");
    for (const std::size_t size : {1u, 65535u, 1u, 65536u, 0u, 65537u, 3u, 200000u, 5u}) {
      const std::string piece(size, static_cast<char>('a' + expected.size() % 26));
      file.write(size > 0 ? piece.data() : nullptr, size);
      expected += piece;
    }
    file.commit();
  }
  CHECK((read_bytes(folder / "x") == expected));
}

TEST_CASE("the next write of a name removes what killed ones have left", "[files]") {
  const test::TemporaryFolder folder;
  // A letter of two bytes lies across the cut of the long name.
  const std::string long_name = std::string(99, 'n') + "\xc3\xa4" + std::string(100, 'n');
  for (const std::string& name : {std::string("x"), long_name}) {
    INFO(name);
    std::string temporary;
    {
      fit::AtomicFile file(folder / name);
      REQUIRE(folder.files() == 1);
      temporary = *names_in(folder / ".").begin();
      CHECK(!test::contains(temporary, "\xc3"));
      // A second one of the same name does not take the first for a left-over.
      write_atomically(folder / name, "second");
      CHECK(names_in(folder / ".") == std::set<std::string>{name, temporary});
      file.write("first", 5);
      file.commit();
    }
    CHECK(read_bytes(folder / name) == "first");
    write_bytes(folder / temporary, "left");
    write_atomically(folder / name, "third");
    CHECK(names_in(folder / ".") == std::set<std::string>{name});

    const std::set<std::string> others{"y", temporary + "x", "x" + temporary, temporary.substr(1), ".fit-0.tmp"};
    for (const std::string& other : others) write_bytes(folder / other, "not of this name");
    write_atomically(folder / name, "fourth");
    std::set<std::string> expected = others;
    expected.insert(name);
    CHECK(names_in(folder / ".") == expected);
    for (const std::string& other : expected) fs::remove(folder / other);
  }
}

TEST_CASE("threads that write one name do not disturb each other", "[files]") {
  const test::TemporaryFolder folder;
  std::vector<std::thread> threads;
  std::vector<std::string> errors(4);
  for (std::size_t t = 0; t < errors.size(); ++t) {
    threads.emplace_back([&, t] {
      errors[t] = test::error_of([&] {
        for (int i = 0; i < 100; ++i) write_atomically(folder / "x", std::string(1000 + t, 'x'));
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) CHECK(error == "(no error)");
  CHECK(names_in(folder / ".") == std::set<std::string>{"x"});
}

#if FIT_POSIX_FILES

namespace {

/// Runs a function in a forked process, which ends by itself with 0, and lets it end.
template <class Call>
void in_a_fork(Call&& call) {
  const pid_t child = fork();
  if (child == 0) {
    call();
    std::fflush(nullptr);
    _exit(0);
  }
  REQUIRE(child > 0);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

}  // namespace

TEST_CASE("a process that is killed leaves its file to the next write, a living one does not", "[files]") {
  const test::TemporaryFolder folder;
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const fit::AtomicFile file(folder / "x");
    if (write(ready[1], "r", 1) == 1) pause();
    _exit(1);
  }
  REQUIRE(child > 0);
  char byte = 0;
  REQUIRE(read(ready[0], &byte, 1) == 1);
  close(ready[0]);
  close(ready[1]);
  write_atomically(folder / "x", "old");
  CHECK(folder.files() == 2);
  kill(child, SIGKILL);
  REQUIRE(waitpid(child, nullptr, 0) == child);
  CHECK(folder.files() == 2);
  write_atomically(folder / "x", "new");
  CHECK(names_in(folder / ".") == std::set<std::string>{"x"});
  CHECK(read_bytes(folder / "x") == "new");
}

TEST_CASE("a fork leaves the file that its parent writes alone", "[files]") {
  const test::TemporaryFolder folder;
  const std::string half(50000, 'h');
  {
    std::optional<fit::AtomicFile> file(folder / "x");
    file->write(half.data(), half.size());
    file->write(half.data(), half.size());  // so that the first half has gone on
    in_a_fork([] {});                       // what stdio holds back would be written here, and again by the parent
    in_a_fork([&] { file.reset(); });
    write_atomically(folder / "x", "in between");  // the forks' end has not given up the lock
    CHECK(folder.files() == 2);
    file->commit();
  }
  CHECK((read_bytes(folder / "x") == half + half));
  CHECK(folder.files() == 1);
}

TEST_CASE("a file keeps its mode and owner", "[files]") {
  const test::TemporaryFolder folder;
  const auto mode = [&](const char* name) { return static_cast<unsigned>(fs::status(folder / name).permissions()); };
  const mode_t mask = umask(027);
  write_atomically(folder / "x", "new");
  umask(mask);
  CHECK(mode("x") == 0640);
  for (const unsigned wanted : {0600u, 0644u, 0444u, 0755u}) {
    fs::permissions(folder / "x", static_cast<fs::perms>(wanted));
    {
      fit::AtomicFile file(folder / "x");
      for (const std::string& name : names_in(folder / ".")) {
        if (name != "x") CHECK(mode(name.c_str()) == 0600);  // not for others to read on the way
      }
      file.write("replaced", 8);
      file.commit();
    }
    CHECK(mode("x") == wanted);
    CHECK(read_bytes(folder / "x") == "replaced");
  }
  if (chown((folder / "x").c_str(), 12345, 23456) == 0) {  // few may give files away
    write_atomically(folder / "x", "replaced");
    struct stat status;
    REQUIRE(stat((folder / "x").c_str(), &status) == 0);
    CHECK(status.st_uid == 12345);
    CHECK(status.st_gid == 23456);
    CHECK(mode("x") == 0755);
  }
}

TEST_CASE("symbolic links stay, and what they lead to is written", "[files]") {
  const test::TemporaryFolder folder;
  fs::create_directories(folder / "versions/deep");
  write_bytes(folder / "versions/one", "old");
  fs::permissions(folder / "versions/one", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("versions/one", folder / "relative");
  fs::create_symlink(folder / "relative", folder / "chain");
  fs::create_symlink("../one", folder / "versions/deep/up");
  fs::create_symlink("versions/deep", folder / "folder");
  for (const char* link : {"relative", "chain", "versions/deep/up", "folder/up"}) {
    INFO(link);
    write_atomically(folder / link, link);
    CHECK(fs::is_symlink(folder / link));
    CHECK(!fs::is_symlink(folder / "versions/one"));
    CHECK(read_bytes(folder / "versions/one") == link);
    CHECK((fs::status(folder / "versions/one").permissions() & fs::perms::all) ==
          (fs::perms::owner_read | fs::perms::owner_write));
  }
  fs::create_symlink("versions/two", folder / "dangling");
  write_atomically(folder / "dangling", "created");
  CHECK(fs::is_symlink(folder / "dangling"));
  CHECK(read_bytes(folder / "versions/two") == "created");
  CHECK(names_in(folder / "versions") == std::set<std::string>{"deep", "one", "two"});
  {
    const WorkingFolder working(folder / ".");
    write_atomically("relative", "from here");
    CHECK(read_bytes("versions/one") == "from here");
  }

  const auto error = [&](const char* name) { return test::error_of([&] { write_atomically(folder / name, "x"); }); };
  fs::create_symlink("circle", folder / "circle");
  CHECK(test::contains(error("circle"), "circle: cannot write: too many symbolic links"));
  fs::create_symlink("versions/deep", folder / "to_folder");
  CHECK(test::contains(error("to_folder"), "to_folder: cannot write: not a regular file"));
  fs::create_symlink("none/x", folder / "astray");
  const std::string text = error("astray");
  INFO(text);
  CHECK(test::contains(text, "astray, a link to " + (folder / "none/x").string() + ": cannot create a file"));
  CHECK(names_in(folder / ".") ==
        std::set<std::string>{"versions", "relative", "chain", "folder", "dangling", "circle", "to_folder", "astray"});
}

#endif
