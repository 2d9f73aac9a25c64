// Tests of what needs no worker: dtypes, shapes, tensors, files, JSON, messages, identities. Files go to the empty
// directory TR_TEST_FOLDER.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "check.hpp"
#include "tr_mmap/tr_mmap.hpp"

using namespace tr;

namespace {

std::string folder() { return std::getenv("TR_TEST_FOLDER"); }

Fault fault_of(const std::function<void()>& action) { return thrown_by<TSRFormatError>(action).fault; }

}  // namespace

TEST(format_dtype_table_agrees_with_the_types) {
    for (const auto& each : detail::dtype_table) {
        with_type(each.dtype, [&](auto type) {
            using T = typename decltype(type)::type;
            CHECK_EQUAL(sizeof(T), each.itemsize);
            CHECK(dtype_of<T>() == each.dtype);
        });
        CHECK(dtype_by_name(each.name) == each.dtype);
        CHECK(dtype_by_name(each.label) == each.dtype);
    }
    CHECK(dtype_of<long>() == DType::INT64 && dtype_of<long long>() == DType::INT64);
    thrown_by<UnsupportedTensor>([] { dtype_by_name("float31"); });
    CHECK(dtype_by_name("<f4") == DType::FP32 && dtype_by_name("double") == DType::FP64);
    const std::string swapped = thrown_by<UnsupportedTensor>([] { dtype_by_name(">f8"); }).what();
    CHECK(swapped.find("big-endian") != std::string::npos && swapped.find("float64") != std::string::npos);
    thrown_by<UnsupportedTensor>([] { itemsize(static_cast<DType>(tr::detail::max_dtype_code + 1)); });
}

TEST(format_low_floats_survive_float_and_back) {
    const auto every = [](auto number, unsigned count) {
        using T = decltype(number);
        for (unsigned bits = 0; bits < count; ++bits) {
            const T before = T::from_bits(static_cast<typename T::Bits>(bits));
            const float value = before;
            const T after(value);
            CHECK(after.bits == before.bits || (std::isnan(value) && std::isnan(static_cast<float>(after))));
        }
    };
    every(half(), 65536);
    every(bfloat16(), 65536);
    every(float8_e4m3fn(), 256);
    every(float8_e5m2(), 256);
    every(float8_e4m3fnuz(), 256);
    every(float8_e5m2fnuz(), 256);
    every(float8_e8m0fnu(), 256);
}

TEST(format_low_floats_round_to_the_nearest_even) {
    CHECK_EQUAL(half(65504.0f).bits, 0x7bff);
    CHECK_EQUAL(half(65519.0f).bits, 0x7bff);
    CHECK_EQUAL(half(65520.0f).bits, 0x7c00);
    CHECK_EQUAL(half(5.9604645e-8f).bits, 1);
    CHECK_EQUAL(half(2.9802322e-8f).bits, 0);  // the tie goes to the even one
    CHECK_EQUAL(half(-0.0f).bits, 0x8000);
    CHECK_EQUAL(bfloat16(1.00390625f).bits, 0x3f80);
    CHECK_EQUAL(bfloat16(1.01171875f).bits, 0x3f82);
    CHECK_EQUAL(int{float8_e4m3fn(1000.0f).bits}, 0x7f);
    CHECK_EQUAL(int{float8_e5m2(1e6f).bits}, 0x7c);
    CHECK_EQUAL(int{float8_e4m3fnuz(-0.0f).bits}, 0);
}

TEST(format_shape) {
    CHECK_EQUAL(Shape(4, 5).to_string(), "4x5");
    CHECK(Shape(4, 5).n() == 1 && Shape(4, 5).c() == 1 && Shape(4, 5).h() == 4 && Shape(4, 5).w() == 5);
    CHECK(Shape(2, 3, 4, 5).n() == 2 && Shape(2, 3, 4, 5).c() == 3 && Shape().w() == 1 && Shape(0).w() == 0);
    thrown_by<UnsupportedTensor>([] { Shape(1, 2, 3, 4, 5).w(); });
    thrown_by<UnsupportedTensor>([] { Shape(std::int64_t{1} << 31).w(); });
    CHECK_EQUAL(Shape().to_string(), "()");
    CHECK_EQUAL(Shape().numel(), 1);
    CHECK_EQUAL(Shape(0, 3).numel(), 0);
    CHECK((Shape{4, 5} == Shape(std::vector<std::int64_t>{4, 5})));
    CHECK(Shape(4, 5) != Shape(5, 4) && Shape(1) != Shape());
    CHECK_EQUAL(Shape(4, 5)[-1], 5);
    thrown_by<UnsupportedTensor>([] { return Shape(4, 5)[2]; });
    thrown_by<UnsupportedTensor>([] { Shape(-1); });
    thrown_by<UnsupportedTensor>([] { Shape(std::int64_t{1} << 40, std::int64_t{1} << 40); });
    thrown_by<UnsupportedTensor>([] { Shape(0, std::int64_t{1} << 40, std::int64_t{1} << 40); });
    thrown_by<UnsupportedTensor>([] { Shape(std::vector<std::int64_t>(17, 1)); });
    thrown_by<UnsupportedTensor>([] { Shape(~std::uint64_t{0}); });
}

TEST(format_tensor) {
    const Tensor full = Tensor::full(Shape(4, 3), 1.5f);
    CHECK_EQUAL(full.numel(), 12);
    CHECK_EQUAL(full.nbytes(), 48u);
    CHECK_EQUAL(full.data<float>()[11], 1.5f);
    CHECK_EQUAL(Tensor::zeros(Shape(2), DType::INT64).data<std::int64_t>()[1], 0);
    CHECK_EQUAL(Tensor::full(Shape(), 7, DType::BF16).item<bfloat16>(), 7.0f);
    CHECK_EQUAL(Tensor::full(Shape(2), 255, DType::UINT8).data<std::uint8_t>()[1], 255);
    CHECK_EQUAL(Tensor::full(Shape(1), 3, DType::COMPLEX64).item<std::complex<float>>(), (std::complex<float>(3, 0)));
    thrown_by<UnsupportedTensor>([&] { return full.data<double>(); });
    thrown_by<UnsupportedTensor>([] { return Tensor::full(Shape(), 1.5f).item<bool>(); });
    thrown_by<UnsupportedTensor>([] { Tensor::full(Shape(2), 256, DType::UINT8); });
    thrown_by<UnsupportedTensor>([] { Tensor::full(Shape(2), -1, DType::UINT64); });
    thrown_by<UnsupportedTensor>([] { Tensor::full(Shape(2), 1.5, DType::INT32); });
    thrown_by<UnsupportedTensor>([] { Tensor::full(Shape(2), 9.3e18, DType::INT64); });
    thrown_by<UnsupportedTensor>([] { Tensor::empty(Shape(std::int64_t{1} << 61), DType::FP64); });
    CHECK_EQUAL(Tensor().numel(), 0);
    CHECK(Tensor().data<float>() == nullptr);
    Tensor shared = full, copy = full.clone();
    shared.mutable_data<float>()[0] = 9;
    CHECK_EQUAL(full.data<float>()[0], 9.0f);
    CHECK_EQUAL(copy.data<float>()[0], 1.5f);
    CHECK_EQUAL(full.reshape(Shape(12)).shape().to_string(), "12");
    thrown_by<UnsupportedTensor>([&] { return full.reshape(Shape(11)); });
    CHECK_EQUAL(Tensor::from_vector<bool>(Shape(2), {true, false}).to_string(), "[true, false]");
}

TEST(format_randn) {
    const Tensor a = Tensor::randn(Shape(10000), 7), b = Tensor::randn(Shape(10000), 7);
    CHECK(std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0);
    double sum = 0, squares = 0;
    for (int i = 0; i < 10000; ++i) sum += a.data<float>()[i], squares += a.data<float>()[i] * a.data<float>()[i];
    CHECK(std::fabs(sum / 10000) < 0.05 && std::fabs(squares / 10000 - 1) < 0.1);
    CHECK(std::memcmp(Tensor::randn(Shape(100)).data_ptr(), Tensor::randn(Shape(100)).data_ptr(), 400) != 0);
    thrown_by<UnsupportedTensor>([] { Tensor::randn(Shape(2), 1, DType::INT32); });
}

TEST(format_tensor_as_text) {
    CHECK_EQUAL(Tensor::full(Shape(2, 2), 9.0f).to_string(), "[[9.0, 9.0],\n [9.0, 9.0]]");
    CHECK_EQUAL(Tensor::full(Shape(), -3, DType::INT8).to_string(), "-3");
    CHECK_EQUAL(Tensor::zeros(Shape(0, 3)).to_string(), "[]");
    CHECK_EQUAL(Tensor::full(Shape(1), std::numeric_limits<float>::infinity()).to_string(), "[inf]");
    CHECK_EQUAL(Tensor::zeros(Shape(2000), DType::UINT8).to_string(), "[0, 0, 0, ..., 0, 0, 0]");
    Tensor odd = Tensor::zeros(Shape(1), DType::BOOL);
    odd.data<std::byte>()[0] = std::byte{28};  // no bool, but bytes that anybody may have sent
    CHECK_EQUAL(odd.to_string(), "[true]");
    CHECK(odd.item<bool>());
    CHECK_EQUAL(Tensor::full(Shape(1), 1.5, DType::COMPLEX128).to_string(), "[1.5+0.0i]");
}

TEST(format_crc32) {
    CHECK_EQUAL(crc32("123456789", 9), 0xCBF43926u);
    CHECK_EQUAL(crc32("456789", 6, crc32("123", 3)), 0xCBF43926u);
    CHECK_EQUAL(crc32(nullptr, 0), 0u);
}

TEST(format_files_come_back) {
    const std::string path = folder() + "/x.tsr";
    for (const auto& each : detail::dtype_table) {
        for (const int version : {0, 1, 2}) {
            if (version < 2 && static_cast<int>(each.dtype) > 8) continue;
            for (const Shape& shape : {Shape(), Shape(3), Shape(2, 3), Shape(0, 4), Shape(2, 1, 2, 2)}) {
                Tensor tensor = Tensor::empty(shape, each.dtype);
                for (std::size_t i = 0; i < tensor.nbytes(); ++i) {
                    tensor.data<std::byte>()[i] = static_cast<std::byte>(each.dtype == DType::BOOL ? i & 1 : i * 37);
                }
                save_tsr(path, tensor, version, version == 2);
                const Tensor loaded = load_tsr(path, version == 2);
                if (version < 2) CHECK(fault_of([&] { load_tsr(path, true); }) == Fault::NO_CHECKSUM);
                CHECK(loaded.dtype() == each.dtype);
                CHECK_EQUAL(loaded.numel(), tensor.numel());
                if (version > 0) CHECK_EQUAL(loaded.shape(), shape);
                CHECK(tensor.nbytes() == 0 || std::memcmp(loaded.data_ptr(), tensor.data_ptr(), tensor.nbytes()) == 0);
                CHECK_EQUAL(read_header(path).version, version);
            }
        }
    }
    Tensor loaded = load_tsr(path);
    save_tsr(Tensor::full(Shape(2), 1.0f), path);  // either order
    CHECK(!load_tsr(path).is_writable());
    thrown_by<ReadOnlyTensor>([&] { load_tsr(path).mutable_data<float>(); });
    thrown_by<ReadOnlyTensor>([&] { load_tsr(path).fill(2); });
}

TEST(format_old_views_survive_a_save) {
    const std::string path = folder() + "/y.tsr";
    save_tsr(path, Tensor::full(Shape(1000), 1.0f));
    const Tensor before = load_tsr(path);
    save_tsr(path, Tensor::full(Shape(10), 2.0f));
    CHECK_EQUAL(before.data<float>()[999], 1.0f);
    CHECK_EQUAL(load_tsr(path).data<float>()[9], 2.0f);
}

TEST(format_save_keeps_symlinks_and_modes) {
    const std::string path = folder() + "/target.tsr", link = folder() + "/link.tsr";
    save_tsr(path, Tensor::full(Shape(1), 1.0f));
    CHECK(::chmod(path.c_str(), 0664) == 0);
    CHECK(::symlink("target.tsr", link.c_str()) == 0);
    save_tsr(link, Tensor::full(Shape(1), 2.0f));
    CHECK_EQUAL(load_tsr(path).data<float>()[0], 2.0f);
    struct stat info;
    CHECK(::lstat(link.c_str(), &info) == 0 && S_ISLNK(info.st_mode));
    CHECK(::stat(path.c_str(), &info) == 0 && (info.st_mode & 0777) == 0664);
}

TEST(format_save_keeps_permissions_exactly) {
    const std::string path = folder() + "/mode.tsr";
    const mode_t before = ::umask(0777);
    for (const mode_t mode : {0600, 0664, 0777, 0444, 06755}) {
        save_tsr(path, Tensor::full(Shape(1), 1.0f));
        CHECK(::chmod(path.c_str(), mode) == 0);
        for (const int version : {0, 1, 2}) save_tsr(path, Tensor::full(Shape(1), 2.0f), version);
        struct stat info;
        CHECK(::stat(path.c_str(), &info) == 0 && (info.st_mode & 07777) == (mode & 0777));
    }
    ::umask(before);
}

TEST(format_a_path_means_what_it_means_to_open) {
    const Tensor one = Tensor::full(Shape(1), 1.0f);
    const std::string path = folder() + "/paths.tsr";
    const auto code_of = [&](const std::string& name) {
        return thrown_by<SystemError>([&] { save_tsr(name, one); }).code;
    };
    CHECK(code_of("") == ENOENT);
    CHECK(code_of(path + "/") == EISDIR);
    CHECK(code_of(path + "//") == EISDIR);
    CHECK(code_of(folder() + "/none/") == EISDIR);
    CHECK(code_of(folder() + "/none/x/") == ENOENT);
    CHECK(code_of(path + std::string("\0x", 2)) == EINVAL);
    CHECK(thrown_by<SystemError>([&] { load_tsr(path + std::string("\0x", 2)); }).code == EINVAL);
    CHECK(::access(path.c_str(), F_OK) != 0);
    thrown_by<HostilePath>([&] { save_tsr(folder() + "/", one); });
    save_tsr(path, one);
    CHECK(code_of(path + "/") == ENOTDIR);
    const std::string loop = folder() + "/loop", dangling = folder() + "/dangling", slash = folder() + "/slash";
    CHECK(::symlink("loop", loop.c_str()) == 0 && ::symlink("new.tsr", dangling.c_str()) == 0);
    CHECK(::symlink("newer/", slash.c_str()) == 0);
    CHECK(code_of(loop) == ELOOP);
    CHECK(code_of(slash) == EISDIR);
    save_tsr(dangling, one);
    CHECK_EQUAL(load_tsr(folder() + "/new.tsr").data<float>()[0], 1.0f);
}

TEST(format_an_error_of_a_save_names_the_user_s_file) {
    const Tensor one = Tensor::full(Shape(2), 1.0f);
    for (const std::string& path : {folder() + "/nodir/x", std::string("nodir/x")}) {
        const auto missing = thrown_by<SystemError>([&] { save_tsr(path, one); });
        CHECK_EQUAL(missing.code, ENOENT);
        CHECK(std::string(missing.what()).rfind(path, 0) == 0);
    }
}

TEST(format_a_relative_path_is_resolved_once_by_a_save) {
    const std::string first = folder() + "/first", second = folder() + "/second";
    const std::filesystem::path before = std::filesystem::current_path();
    std::filesystem::create_directory(first);
    std::filesystem::create_directory(second);
    std::filesystem::current_path(first);
    std::atomic<bool> is_over{false};
    std::thread mover([&] {
        while (!is_over) {
            std::filesystem::current_path(second);
            std::filesystem::current_path(first);
        }
    });
    int failures = 0;
    for (int round = 0; round < 500; ++round) {
        try {
            save_tsr("x.tsr", Tensor::full(Shape(2000), 1.0f));
        } catch (const TRException&) {
            ++failures;
        }
    }
    is_over = true;
    mover.join();
    std::filesystem::current_path(before);
    CHECK_EQUAL(failures, 0);
    for (const std::string& place : {first, second}) {
        for (const auto& each : std::filesystem::directory_iterator(place)) {
            CHECK_EQUAL(each.path().filename().string(), std::string("x.tsr"));
            CHECK(load_tsr(each.path().string()).shape() == Shape(2000));
        }
    }
}

TEST(format_a_file_without_a_name_is_overwritten_in_place) {
    const std::string path = folder() + "/gone.tsr", kept = folder() + "/gone.tsr (deleted)";
    save_tsr(path, Tensor::full(Shape(1), 1.0f));
    save_tsr(kept, Tensor::full(Shape(1), 5.0f));  // what the link's text says
    const int removed = ::open(path.c_str(), O_RDWR), memory = ::memfd_create("weights", MFD_CLOEXEC);
    CHECK(removed >= 0 && memory >= 0 && ::unlink(path.c_str()) == 0);
    for (const int fd : {removed, memory}) {
        const std::string name = "/proc/self/fd/" + std::to_string(fd);
        for (const std::int64_t count : {1000, 3}) {
            save_tsr(name, Tensor::full(Shape(count), 2.0f), 2, true);
            CHECK_EQUAL(load_tsr(name, true).data<float>()[count - 1], 2.0f);
            CHECK_EQUAL(load_tsr("/dev/fd/" + std::to_string(fd)).numel(), count);
        }
        ::close(fd);
    }
    CHECK(::access(path.c_str(), F_OK) != 0);
    CHECK_EQUAL(load_tsr(kept).data<float>()[0], 5.0f);
}

TEST(format_refused_before_a_file_exists) {
    const std::string path = folder() + "/none.tsr";
    const auto save = [&](const Tensor& tensor, int version, bool checksum = false) {
        return fault_of([&] { save_tsr(path, tensor, version, checksum); });
    };
    CHECK(save(Tensor::zeros(Shape(1), DType::INT64), 1) == Fault::UNREPRESENTABLE);
    CHECK(save(Tensor::zeros(Shape(1, 1, 1, 1, 1)), 0) == Fault::UNREPRESENTABLE);
    CHECK(save(Tensor::zeros(Shape(0, std::int64_t{1} << 31)), 1) == Fault::UNREPRESENTABLE);
    CHECK(save(Tensor::zeros(Shape(1)), 1, true) == Fault::UNREPRESENTABLE);
    CHECK(save(Tensor::zeros(Shape(1)), 3) == Fault::BAD_VERSION);
    CHECK(::access(path.c_str(), F_OK) != 0);
    CHECK(thrown_by<SystemError>([&] { load_tsr(path); }).code == ENOENT);
    CHECK_EQUAL(std::string(thrown_by<SystemError>([] { load_tsr(""); }).what()).substr(0, 4), "'': ");
    CHECK(thrown_by<SystemError>([&] { save_tsr(folder() + "/no/x.tsr", Tensor::zeros(Shape(1))); }).code == ENOENT);
    thrown_by<HostilePath>([&] { load_tsr(folder()); });
    thrown_by<HostilePath>([&] { load_tsr("/dev/null"); });
    thrown_by<HostilePath>([&] { save_tsr(folder(), Tensor::zeros(Shape(1))); });
    const std::string fifo = folder() + "/fifo";
    CHECK(::mkfifo(fifo.c_str(), 0600) == 0);
    thrown_by<HostilePath>([&] { load_tsr(fifo); });
}

TEST(format_size_classes_are_those_of_python) {
    using detail::class_nbytes;
    CHECK_EQUAL(class_nbytes(0), 4096u);
    CHECK_EQUAL(class_nbytes(4097), 8192u);
    CHECK_EQUAL(class_nbytes(1 << 20), 1u << 20);
    CHECK_EQUAL(class_nbytes((1 << 20) + 1), (1u << 20) + (1u << 17));
    CHECK_EQUAL(class_nbytes(64 << 20), 64u << 20);
}

TEST(format_json) {
    const auto value = json::parse(R"( {"a": [1, -2, 18446744073709551615, 1.5e3, true, null], "b": "\u00e9\ud83d\ude00\n"} )");
    const auto& items = *value.find("a")->get<json::Array>();
    CHECK_EQUAL(*items[1].get<std::int64_t>(), -2);
    CHECK_EQUAL(*items[2].get<std::uint64_t>(), ~std::uint64_t{0});
    CHECK_EQUAL(*items[3].get<double>(), 1500.0);
    CHECK(*items[4].get<bool>() && items[5].is_null());
    CHECK_EQUAL(*value.find("b")->get<std::string>(), "é😀\n");
    std::string text;
    json::append_string(text, "a\"\\\n\x01é");
    CHECK_EQUAL(text, "\"a\\\"\\\\\\u000a\\u0001é\"");
    CHECK_EQUAL(*json::parse(text).get<std::string>(), "a\"\\\n\x01é");
    for (const char* bad : {"", "{", "[1,]", "{\"a\" 1}", "{\"a\":1,\"a\":1}", "01", "1.", "-", "tru", "\"\x01\"", "\"\\x\"", "\"\\ud800\"",
                            "\"\\udc00\"", "1 2", "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "nul", "+1", "\"\\u12"}) {
        thrown_by<BadMessage>([&] { json::parse(bad); });
    }
    thrown_by<BadMessage>([] { json::parse(std::string(100000, '[')); });
    thrown_by<BadMessage>([&] { json::append_string(text, "\xff"); });
}

TEST(format_commands) {
    using detail::parse_command;
    const auto check = [](const char* message, const char* command, const char* parameters) {
        const auto found = parse_command(message);
        CHECK_EQUAL(found.command, command);
        CHECK_EQUAL(found.parameters, parameters);
    };
    check("  matmul  a b ", "matmul", "a b");
    check("hello", "hello", "");
    check("scale\tx", "scale", "x");
    check(R"({"cmd": "matmul", "params": "a,b"})", "matmul", "a,b");
    check(R"({"command": "matmul", "parameters": ["a", 2, 2.5, true]})", "matmul", "a 2 2.5 True");
    check(R"({"cmd": "x", "params": ["\u2014", "\u20ac"]})", "x", "\xe2\x80\x94 \xe2\x82\xac");
    check(R"({"cmd": "x", "params": 3})", "x", "3");
    check(R"({"cmd": "x", "command": "x", "params": null})", "x", "");
    for (const char* bad : {"", "  ", "{", "{}", R"({"cmd": 1})", R"({"cmd": "a", "command": "b"})", R"({"cmd": " "})",
                            R"({"cmd": "a", "params": {}})", R"({"cmd": "a", "params": [[]]})",
                            R"({"cmd": "a", "params": ["b c"]})", R"({"cmd": "a", "params": ["b,c"]})",
                            R"({"cmd": "a", "params": ["b", ""]})", R"({"cmd": "a", "params": ["b\u2003c"]})",
                            R"({"cmd": "a", "params": ["\u00a0b"]})"}) {
        thrown_by<BadMessage>([&] { parse_command(bad); });
    }
}

TEST(format_messages) {
    detail::Request request;
    request.seq = 7;
    request.command = "matmul";
    request.timestamp = 5;
    CHECK_EQUAL(detail::encode_rest(request), R"(,"command":"matmul","timestamp":5})");
    request.parameters = "a b";
    request.tensors = {{"a", "segment_0.tsr", 1}, {"b", "segment_1.tsr", 2}};
    request.drops = {"c", "d"};
    CHECK_EQUAL(detail::encode_rest(request),
                R"(,"command":"matmul","parameters":"a b","timestamp":5,"tensors":[["a","segment_0.tsr",1],)"
                R"(["b","segment_1.tsr",2]],"drops":["c","d"]})");
    const auto response = detail::decode_response(
        R"({"seq":      12,"command":"x","result":"ok","tensors":[["","result_0.tsr",3]],"more":1,)"
        R"("error":{"kind":"handler","type":"E","message":"m","traceback":"t"}})");
    CHECK_EQUAL(response.seq, 12u);
    CHECK_EQUAL(response.tensors.at(0).segment, "result_0.tsr");
    CHECK_EQUAL(response.error->traceback, "t");
    for (const char* bad : {"[]", "1", R"({"seq":-1})", R"({"seq":"1"})", R"({"tensors":1})", R"({"tensors":[1]})",
                            R"({"tensors":[["","x"]]})", R"({"error":1})", R"({"result":1})"}) {
        thrown_by<BadMessage>([&] { detail::decode_response(bad); });
    }
    CHECK(detail::parse_status("busy: epoch 3") == detail::Status::BUSY);
    CHECK(detail::parse_status("Done") == detail::Status::OK);
    thrown_by<BadMessage>([] { detail::parse_status("dancing"); });
}

TEST(format_names) {
    for (const char* good : {"a", "input_a", "x.y-z", "result_", "result_x", "segment_1x"}) detail::check_tag(good);
    for (const char* bad : {"", ".a", "a b", "a/b", "result_0", "segment_12", "é"}) {
        thrown_by<BadTag>([&] { detail::check_tag(bad); });
    }
    thrown_by<BadTag>([] { detail::check_tag(std::string(129, 'a')); });
    thrown_by<BadMessage>([] { PythonSession("default", "a/b"); });
    thrown_by<BadMessage>([] { PythonSession("default", std::string(65, 'a')); });
    const std::string text = thrown_by<BadMessage>([] { PythonSession("default", std::string("a\0b\0", 4)); }).what();
    CHECK(text.find("'a\\x00b\\x00' is no session id") == 0 && text.find("not beginning with a dot") != std::string::npos);
}

TEST(format_identities) {
    using detail::Identity;
    const Identity own = Identity::current();
    CHECK(own.is_alive() && own == Identity::of(::getpid()));
    Identity other = own;
    other.start_ticks += 1;
    CHECK(!other.is_alive());
    other = own;
    other.boot = "another";
    CHECK(!other.is_alive());
    other = own;
    other.pid_namespace += 1;
    CHECK(other.is_alive());  // cannot be judged
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    const Identity ended = Identity::of(child);
    CHECK(detail::wait_for_ends({ended}, detail::deadline_in(5000)));
    CHECK(!ended.is_alive());  // a zombie has ended
    ::waitpid(child, nullptr, 0);
}

TEST(format_hostile_files_are_refused) {
    const std::string path = folder() + "/hostile";
    CHECK(::symlink("/etc/passwd", path.c_str()) == 0);
    thrown_by<HostilePath>([&] { detail::open_private_file(path); });
    ::unlink(path.c_str());
    CHECK(::mkfifo(path.c_str(), 0600) == 0);
    thrown_by<HostilePath>([&] { detail::open_private_file(path); });
    ::unlink(path.c_str());
    std::ofstream(path) << "x";
    ::chmod(path.c_str(), 0666);
    thrown_by<HostilePath>([&] { detail::open_private_file(path); });
    ::unlink(path.c_str());
    CHECK(!detail::open_private_file(path));
}

TEST(format_life_lock_is_its_own_process_s_and_no_child_s) {
    const std::string path = folder() + "/lock", other = folder() + "/other", later = folder() + "/later";
    CHECK(!detail::is_lock_free(path));  // a file that is missing says nothing
    detail::LifeLock lock;
    lock.take(path);
    CHECK(!detail::is_lock_free(path) && lock.is_at(path) && !lock.is_at(other));
    detail::Identity stranger = detail::Identity::local(::getpid(), 1);
    CHECK(!detail::is_alive(stranger, path));  // its pid says more than a lock
    stranger.pid_namespace += 1;
    CHECK(detail::is_alive(stranger, path) && detail::is_alive(stranger, other));
    int ends[2];
    CHECK(::pipe2(ends, O_CLOEXEC) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        char byte = 0;
        detail::LifeLock own;
        own.take(other);  // under the number that its parent's lock had, perhaps
        lock.drop();
        bool is_right = !detail::is_lock_free(other);
        ::close(ends[1]);
        is_right = ::read(ends[0], &byte, 1) == 1 && is_right && !detail::is_lock_free(other);
        ::_exit(is_right ? 0 : 1);
    }
    int status = 0;
    while (::access(other.c_str(), F_OK) != 0) CHECK(::waitpid(child, &status, WNOHANG) == 0);  // until it runs
    lock.drop();
    CHECK(detail::is_lock_free(path) && !detail::is_alive(stranger, path));  // while the child lives
    CHECK(::rename(path.c_str(), later.c_str()) == 0);
    CHECK(!lock.is_at(path) && detail::is_alive(stranger, path));
    CHECK(::write(ends[1], "x", 1) == 1);
    ::waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (const int fd : ends) ::close(fd);
    CHECK(detail::is_lock_free(other));
    CHECK(::symlink(other.c_str(), path.c_str()) == 0);
    CHECK(!detail::is_lock_free(path));  // not a file that we made
}
