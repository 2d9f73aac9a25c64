// What the tests beside this file ask the suite to do, other than tests.
//
//   vectors FOLDER         read tests/vectors and compare with its index
//   rewrite FOLDER OUT     load every good vector and save it again
//   faults FILE            name the fault of each header in a file made by test_cpp_files.py
//   lowfloats              decode every code, encode many floats: for comparison with ml_dtypes
//   fuzz COUNT SEED FOLDER OUT  load mutated files, and decode mutated messages: finds what a sanitizer or a broken promise
//                          tells. Each file and what load_tsr made of it goes to OUT, for comparison with Python.
//   end WAY                end in one of the ways of endings.cpp, with a session that is open
//   texts                  the texts of a session's errors, a line each: for comparison with Python's
//   stage NAME             go to a stage of a session's life, say so, and wait to be killed
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "check.hpp"
#include "tr_mmap/tr_mmap.hpp"

using namespace tr;

namespace {

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

const std::string& text_of(const json::Value& entry, const char* key) { return *entry.find(key)->get<std::string>(); }
bool truth_of(const json::Value& entry, const char* key) { return *entry.find(key)->get<bool>(); }
std::uint64_t number_of(const json::Value& entry, const char* key) {
    return detail::to_unsigned(*entry.find(key), key);
}

Shape shape_of(const json::Value& entry) {
    std::vector<std::int64_t> sizes;
    for (const auto& each : *entry.find("shape")->get<json::Array>()) sizes.push_back(*each.get<std::int64_t>());
    return Shape(sizes);
}

int check_vectors(const std::string& folder) {
    const json::Value index = json::parse(read_file(folder + "/index.json"));
    for (const json::Value& entry : *index.find("good")->get<json::Array>()) {
        const std::string path = folder + "/" + text_of(entry, "file");
        const Header header = read_header(path);
        const Tensor tensor = load_tsr(path, header.payload_checksum.has_value());
        CHECK_EQUAL(path + std::to_string(header.version), path + std::to_string(number_of(entry, "version")));
        CHECK_EQUAL(dtype_name(tensor.dtype()), text_of(entry, "dtype"));
        CHECK_EQUAL(tensor.shape(), shape_of(entry));
        CHECK_EQUAL(header.shape, tensor.shape());
        CHECK_EQUAL(header.seq, number_of(entry, "seq"));
        CHECK_EQUAL(header.payload_offset, number_of(entry, "offset"));
        CHECK_EQUAL(header.payload_checksum.has_value(), truth_of(entry, "has_checksum"));
        CHECK_EQUAL(header.is_segment, truth_of(entry, "is_segment"));
        CHECK_EQUAL(crc32(tensor.data_ptr(), tensor.nbytes()), number_of(entry, "payload_crc32"));
    }
    for (const json::Value& entry : *index.find("bad")->get<json::Array>()) {
        const std::string path = folder + "/" + text_of(entry, "file");
        const bool only_verified = truth_of(entry, "only_verified");
        if (only_verified) load_tsr(path);
        std::string fault = "none";
        try {
            load_tsr(path, only_verified);
        } catch (const TSRFormatError& error) {
            fault = fault_name(error.fault);
            CHECK_EQUAL(error.path, path);
        }
        CHECK_EQUAL(path + " " + fault, path + " " + text_of(entry, "fault"));
    }
    std::cout << index.find("good")->get<json::Array>()->size() << " good, "
              << index.find("bad")->get<json::Array>()->size() << " bad" << std::endl;
    return 0;
}

int rewrite_vectors(const std::string& folder, const std::string& out) {
    const json::Value index = json::parse(read_file(folder + "/index.json"));
    for (const json::Value& entry : *index.find("good")->get<json::Array>()) {
        const std::string name = text_of(entry, "file");
        const Header header = read_header(folder + "/" + name);
        save_tsr(out + "/" + name.substr(name.find('/') + 1), load_tsr(folder + "/" + name), header.version,
                 header.payload_checksum.has_value());
    }
    return 0;
}

int name_faults(const std::string& path) {
    const std::string data = read_file(path);
    for (std::size_t at = 0; at < data.size();) {
        std::uint64_t file_nbytes, nbytes;
        std::memcpy(&file_nbytes, &data[at], 8);
        std::memcpy(&nbytes, &data[at + 8], 8);
        try {
            const Header header = decode_header(&data[at + 16], nbytes, file_nbytes);
            std::cout << header.shape << ' ' << dtype_name(header.dtype) << '\n';
        } catch (const TSRFormatError& error) {
            std::cout << fault_name(error.fault) << '\n';
        }
        at += 16 + nbytes;
    }
    return 0;
}

template <class T>
void show_low_float(const char* name, const std::vector<float>& values) {
    std::cout << name;
    for (unsigned bits = 0; bits < 1u << (8 * sizeof(T)); ++bits) {
        std::cout << ' ' << static_cast<float>(T::from_bits(static_cast<typename T::Bits>(bits)));
    }
    for (const float value : values) std::cout << ' ' << static_cast<unsigned>(T(value).bits);
    std::cout << '\n';
}

/// @param path floats to encode, as they are in memory.
int show_low_floats(const std::string& path) {
    const std::string raw = read_file(path);
    std::vector<float> values(raw.size() / 4);
    std::memcpy(values.data(), raw.data(), values.size() * 4);
    std::cout.precision(9);
    show_low_float<half>("float16", values);
    show_low_float<bfloat16>("bfloat16", values);
    show_low_float<float8_e4m3fn>("float8_e4m3fn", values);
    show_low_float<float8_e5m2>("float8_e5m2", values);
    show_low_float<float8_e4m3fnuz>("float8_e4m3fnuz", values);
    show_low_float<float8_e5m2fnuz>("float8_e5m2fnuz", values);
    show_low_float<float8_e8m0fnu>("float8_e8m0fnu", values);
    return 0;
}

class Fuzzer {
public:
    Fuzzer(std::uint64_t seed, const std::string& folder) : random_(seed) {
        for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
            if (entry.path().extension() == ".tsr") seeds_.push_back(read_file(entry.path().string()));
        }
        CHECK(!seeds_.empty());
        std::sort(seeds_.begin(), seeds_.end());
    }

    /// Load ``count`` files.
    ///
    /// @param out gets for each 8 bytes of size, the file, 8 bytes of size, and the verdict as text.
    void headers(std::uint64_t count, std::ostream& out) {
        const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);  // a disk would take most of the time
        CHECK(fd >= 0);
        const std::string path = "/proc/self/fd/" + std::to_string(fd);
        std::uint64_t accepted = 0;
        for (std::uint64_t loaded = 0; loaded < count;) {
            const std::string data = mutate();
            if (decode(data) && below(1000)) continue;  // load_tsr would wait for its owner to finish
            ++loaded;
            std::string verdict;
            CHECK(::ftruncate(fd, 0) == 0 && ::pwrite(fd, data.data(), data.size(), 0) == static_cast<ssize_t>(data.size()));
            try {
                const Tensor tensor = load_tsr(path, read_header(path).payload_checksum.has_value());
                ++accepted;
                const std::uint32_t sum = crc32(tensor.data_ptr(), tensor.nbytes());  // every byte of it is there
                verdict = tensor.shape().to_string() + " " + dtype_name(tensor.dtype()) + " " + std::to_string(sum);
                CHECK(tensor.clone().to_string().size() > 0);
            } catch (const TSRFormatError& error) {
                CHECK_EQUAL(error.path, path);
                verdict = fault_name(error.fault);
            }
            for (const std::string& part : {data, verdict}) {
                const std::uint64_t nbytes = part.size();
                out.write(reinterpret_cast<const char*>(&nbytes), sizeof nbytes);
                out.write(part.data(), static_cast<std::streamsize>(nbytes));
            }
        }
        CHECK(out.flush().good());
        ::close(fd);
        std::cout << count << " headers, " << accepted << " accepted" << std::endl;
    }

    void messages(std::uint64_t count) {
        const std::string good =
            R"({"seq":      12,"command":"x","result":"a\u00e9\n","timestamp":1,"tensors":[["","result_0.tsr",3]],)"
            R"("error":{"kind":"handler","type":"E","message":"m","traceback":"t"}})";
        for (std::uint64_t i = 0; i < count; ++i) {
            std::string text = good;
            for (std::uint64_t change = below(8) + 1; change > 0; --change) {
                const std::size_t at = below(text.size());
                switch (below(4)) {
                    case 0: text[at] = static_cast<char>(below(256)); break;
                    case 1: text.erase(at, below(9)); break;
                    case 2: text.insert(at, text.substr(below(text.size()), below(20))); break;
                    default: text[at] = R"([]{}",:\0123456789-+.eEutrfan)"[below(29)];
                }
                if (text.empty()) text = "x";
            }
            const std::unique_ptr<char[]> exact(new char[text.size()]);  // so that a sanitizer sees one byte too many
            std::memcpy(exact.get(), text.data(), text.size());
            try {
                detail::decode_response({exact.get(), text.size()});
            } catch (const BadMessage&) {
            }
            try {
                detail::parse_command({exact.get(), text.size()});
            } catch (const BadMessage&) {
            }
        }
        std::cout << count << " messages" << std::endl;
    }

private:
    std::uint64_t below(std::uint64_t end) { return random_() % end; }

    std::string mutate() {
        std::string data = seeds_[below(seeds_.size())];
        const std::size_t head = std::min<std::size_t>(data.size(), 256);
        for (std::uint64_t change = below(4); change > 0 && head > 0; --change) {
            const std::size_t at = below(head);
            switch (below(5)) {
                case 0: data[at] = static_cast<char>(data[at] ^ (1 << below(8))); break;
                case 1: data[at] = static_cast<char>(below(256)); break;
                case 2: {  // a whole field
                    const std::uint64_t values[] = {0, 1, 2, 4, 15, 16, 17, 64, 255, 256, 1u << 31, 0x7fffffff,
                                                    std::uint64_t{1} << 32, std::uint64_t{1} << 63,
                                                    ~std::uint64_t{0}, ~std::uint64_t{0} - 1, random_()};
                    const std::uint64_t value = values[below(std::size(values))];
                    const std::size_t size = below(2) ? 8 : 4;
                    const std::size_t place = at / size * size;
                    std::memcpy(&data[place], &value, std::min(size, data.size() - place));
                    break;
                }
                case 3: data.resize(below(data.size() + 40)); break;
                default: std::swap(data[at], data[below(head)]);
            }
            if (data.size() < head) break;
        }
        if (data.size() >= 256 && below(4)) {  // else nearly all would be the header checksum's
            const std::uint32_t sum = crc32(&data[128], 128, crc32(data.data(), 60));
            std::memcpy(&data[60], &sum, 4);
        }
        return data;
    }

    /// Whether it is a segment that its owner seems to be at work on.
    bool decode(const std::string& data) {
        const std::unique_ptr<char[]> exact(new char[data.size()]);
        std::memcpy(exact.get(), data.data(), data.size());
        try {
            const Header header = decode_header(exact.get(), data.size(), data.size());
            CHECK(header.file_nbytes() <= data.size());
            // What is accepted is what would be written: but for fields that readers of v1 ignore, for the live line, and
            // for the flag that says it has the name of a device, which changes the checksum.
            const bool has_device = header.version == 2 && (data[12] & 4);
            const std::vector<std::byte> again = encode_header(header);
            CHECK(again.size() <= data.size());
            for (std::size_t i = 0; i < again.size(); ++i) {
                const bool is_said_once = has_device && (i == 12 || (i >= 60 && i < 64));
                const bool is_free =
                    header.version == 1 ? (i >= 12 && i < 16) || i >= 48 : (i >= 64 && i < 128) || is_said_once;
                CHECK((header.version > 0 && is_free) || static_cast<char>(again[i]) == data[i]);
            }
        } catch (const TSRFormatError& error) {
            const bool is_segment = data.size() > 12 && (data[12] & 2);
            return is_segment && (error.fault == Fault::UNPUBLISHED || error.fault == Fault::TORN ||
                                  error.fault == Fault::HEADER_CHECKSUM);
        }
        return false;
    }

    std::mt19937_64 random_;
    std::vector<std::string> seeds_;
};

int fuzz(std::uint64_t count, std::uint64_t seed, const std::string& folder, const std::string& out) {
    Fuzzer fuzzer(seed, folder);
    std::ofstream verdicts(out, std::ios::binary);
    fuzzer.headers(count, verdicts);
    fuzzer.messages(count / 2);
    return 0;
}

/// One line for each name: the dtype's own, or "-".
int name_dtypes(const std::string& names) {
    std::istringstream lines(names);
    for (std::string name; std::getline(lines, name);) {
        try {
            std::cout << dtype_name(dtype_by_name(name)) << "\n";
        } catch (const UnsupportedTensor&) {
            std::cout << "-\n";
        }
    }
    return 0;
}

[[noreturn]] void say_and_wait(const std::string& stage) {
    std::cout << stage << std::endl;
    while (true) ::pause();
}

void go_to(const std::string& stage) {
    PythonSession s(std::getenv("TR_TEST_WORKER"), "stage", true);
    s.start();
    if (stage == "started") say_and_wait(stage);
    if (stage == "claim") {
        s.wait_until_ready(30000);
        std::cout << "answered " << s.fetch_response("pid") << std::endl;
        return;
    }
    s.wait_until_ready(30000);
    if (stage == "ready") say_and_wait(stage);
    Tensor loan = s.empty<float>(Shape(1000));
    loan.fill(1);
    s.send_tensor(loan, "a");
    if (stage == "sent") say_and_wait(stage);
    const Tensor result = s.fetch_tensor("lend a");
    s.fetch_response("keep a");
    if (stage == "holding") say_and_wait(stage);
    if (stage == "stuck") {
        s.send_request("stuck");
        std::string log;
        while (log.find("stuck") == std::string::npos) log = read_file(s.session_dir() + "/worker.log");
        say_and_wait(stage);
    }
    if (stage == "asking") {
        s.send_request("sleep 60");
        say_and_wait(stage);
    }
    if (stage == "answered") {
        s.send_request("echo a");
        while (!s.new_response()) std::this_thread::yield();
        say_and_wait(stage);
    }
    std::cout << stage << std::endl;  // "busy": killed in the middle of whatever it is at
    while (true) {
        Tensor next = s.empty<float>(Shape(20'000));
        next.fill(2);
        s.calculate("lend", next);
        s.send_tensor(next, "b");
    }
}

/// Say why no session can be started here.
int show_refusal() {
    PythonSession s("default", "refused", true);
    try {
        s.start();
        std::cout << "started" << std::endl;
    } catch (const SemaphoresUnavailable& error) {
        const SystemError& same = error;
        std::cout << "SemaphoresUnavailable " << same.code << " " << error.reason << "\n" << error.what() << std::endl;
    } catch (const OutOfSpace& error) {
        std::cout << "OutOfSpace " << error.free_nbytes << "\n" << error.what() << std::endl;
    }
    return 0;
}

/// Fill /dev/shm with what one side keeps for later tensors, then need room on the other side.
int reuse_room() {
    const Tensor small = Tensor::zeros(Shape(1 << 20)), large = Tensor::ones(Shape(9 << 20));
    const auto with_memory_kept_there = [&](auto use) {
        PythonSession s("default", "room", true);
        s.start();
        {
            std::vector<Tensor> kept;
            for (int i = 0; i < 8; ++i) kept.push_back(s.calculate("echo", small));
        }
        std::cout << use(s) << std::endl;
    };
    with_memory_kept_there([&](PythonSession& s) { return s.calculate("sum", large).item<float>(); });
    with_memory_kept_there([&](PythonSession& s) {
        s.send_tensor(large, "a");
        return s.calculate("sum a").item<float>();
    });
    with_memory_kept_there([&](PythonSession& s) { return s.empty<float>(large.shape()).shape()[0]; });

    PythonSession s("default", "room", true);
    s.start();
    for (int i = 0; i < 8; ++i) s.send_tensor(small, "t" + std::to_string(i));
    for (int i = 0; i < 8; ++i) s.drop_tensor("t" + std::to_string(i));
    const Tensor column = Tensor::ones(Shape(3072, 1)), row = Tensor::ones(Shape(1, 3072));
    try {
        s.calculate("matmul", column, row);
    } catch (const RemoteOutOfSpace&) {
        std::cout << "RemoteOutOfSpace" << std::endl;
    }
    std::cout << s.calculate("matmul", column, row).shape()[0] << std::endl;
    return 0;
}

/// What an action throws, with the line breaks in it shown.
template <class Action>
void show_text(Action action) {
    try {
        action();
        std::cout << "nothing was thrown" << std::endl;
    } catch (const TRException& error) {
        std::string text = error.what();
        for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos;) text.replace(at, 1, "\\n");
        std::cout << text << std::endl;
    }
}

int show_texts() {
    PythonSession s(std::getenv("TR_TEST_WORKER"), "texts", true);
    const auto ask = [&](const char* message, double timeout_ms) {
        show_text([&] { s.fetch_response(message, timeout_ms); });
    };
    ask("pid", 30);
    s.start();
    s.wait_until_ready(60'000);
    show_text([&] { s.wait_for_response(30); });
    ask("unheard", 60'000);
    ask("fail nope", 60'000);
    ask("kill", 60'000);
    ask("pid", 60'000);
    s.start();
    s.wait_until_ready(60'000);
    ask("die 3", 60'000);
    s.start();
    s.wait_until_ready(60'000);
    s.send_request("sleep 600");
    while (true) {
        try {
            s.wait_for_response(1);
        } catch (const ResponseTimeout& error) {
            if (error.is_taken_up == true && error.state == "waiting") break;
        }
    }
    show_text([&] { s.wait_for_response(30); });
    ask("pid", 30);
    s.close();
    ask("pid", 30);
    return 0;
}

}  // namespace

int end_in(const std::string& way);

int run_tool(const std::vector<std::string>& a) {
    try {
        if (a.size() == 2 && a[0] == "vectors") return check_vectors(a[1]);
        if (a.size() == 3 && a[0] == "rewrite") return rewrite_vectors(a[1], a[2]);
        if (a.size() == 2 && a[0] == "faults") return name_faults(a[1]);
        if (a.size() == 2 && a[0] == "lowfloats") return show_low_floats(a[1]);
        if (a.size() == 5 && a[0] == "fuzz") return fuzz(std::stoull(a[1]), std::stoull(a[2]), a[3], a[4]);
        if (a.size() == 2 && a[0] == "dtypes") return name_dtypes(a[1]);
        if (a.size() == 1 && a[0] == "texts") return show_texts();
        if (a.size() == 1 && a[0] == "sweep") return detail::Workspace::locate().sweep(), 0;
        if (a.size() == 2 && a[0] == "stage") return go_to(a[1]), 0;
        if (a.size() == 1 && a[0] == "refusal") return show_refusal();
        if (a.size() == 1 && a[0] == "room") return reuse_room();
        if (a.size() == 2 && a[0] == "end") return end_in(a[1]);
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
    std::cerr << "usage: see tests/cpp/tools.cpp" << std::endl;
    return 2;
}
