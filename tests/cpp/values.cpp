// Tests of values: tensors that were moved from, numbers in other locales, errors that are two things.
#include <clocale>
#include <cstdlib>
#include <iostream>
#include <locale>
#include <sstream>

#include "check.hpp"
#include "tr_mmap/tr_mmap.hpp"

using namespace tr;

namespace {

/// Writes 1234567.5 as 1.234.567,5.
struct Commas : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
};

/// Both kinds of locale, of C++ and of C, for a scope. That of C is TR_TEST_LOCALE, if there is one.
class OtherLocale {
public:
    OtherLocale() {
        before_ = std::locale::global(std::locale(std::locale::classic(), new Commas));
        if (const char* name = std::getenv("TR_TEST_LOCALE")) CHECK(std::setlocale(LC_ALL, name) != nullptr);
    }
    ~OtherLocale() {
        std::locale::global(before_);
        std::setlocale(LC_ALL, "C");
    }

private:
    std::locale before_;
};

std::string parameters(const std::string& words) {
    return detail::parse_command("{\"cmd\": \"x\", \"params\": " + words + "}").parameters;
}

void check_empty(Tensor& tensor) {
    CHECK_EQUAL(tensor.shape(), Shape(0));
    CHECK_EQUAL(tensor.numel(), 0);
    CHECK_EQUAL(tensor.nbytes(), 0u);
    CHECK(tensor.data<float>() == nullptr && tensor.is_writable());
    CHECK_EQUAL(tensor.to_string(), "[]");
    CHECK_EQUAL(tensor.clone().numel(), 0);
    CHECK_EQUAL(tensor.reshape(Shape(3, 0)).numel(), 0);
    tensor.fill(1);
    thrown_by<UnsupportedTensor>([&] { tensor.item<float>(); });
    thrown_by<UnsupportedTensor>([&] { tensor.reshape(Shape(6)); });
}

}  // namespace

TEST(value_of_a_tensor_that_was_moved_from_is_empty) {
    Tensor a = Tensor::ones(Shape(2, 3));
    Tensor b = std::move(a);
    check_empty(a);
    CHECK_EQUAL(b.numel(), 6);
    a = std::move(b);
    check_empty(b);
    const std::string path = std::string(std::getenv("TR_TEST_FOLDER")) + "/moved.tsr";
    save_tsr(path, b);
    CHECK_EQUAL(load_tsr(path).shape(), Shape(0));
    b = a;
    CHECK_EQUAL(b.data<float>(), a.data<float>());
    Tensor& same = a;
    a = std::move(same);
    a = same;
    CHECK_EQUAL(a.numel(), 6);
    Tensor scalar = Tensor::full(Shape(), 2.0f);
    std::swap(a, scalar);
    swap(scalar, b);
    scalar.swap(scalar);
    CHECK(a.item<float>() == 2 && scalar.numel() == 6 && b.numel() == 6);
    std::vector<Tensor> several(3, a);
    several.erase(several.begin());
    CHECK_EQUAL(several.back().numel(), 1);
}

TEST(value_of_other_things_that_were_moved_from) {
    detail::Fd fd(::dup(1));
    detail::Fd& same = fd;
    fd = std::move(same);
    CHECK(fd);
    detail::Fd taken(std::move(fd));
    CHECK(!fd && fd.get() == -1 && taken);
    json::Value value = json::parse("[1, {\"a\": \"b\"}]");
    const json::Value moved = std::move(value);
    CHECK(moved.get<json::Array>()->size() == 2);
    value = moved;
    CHECK(value.get<json::Array>()->size() == 2);
    Shape shape(2, 3);
    const Shape other = std::move(shape);
    CHECK_EQUAL(shape, other);
    Header header = {};
    header.shape = Shape(4);
    const Header again = std::move(header);
    CHECK(header == again);
}

TEST(value_of_a_number_is_the_same_in_every_locale) {
    const OtherLocale other;
    CHECK_EQUAL(parameters("[2.5, -1234567.25, 1e22, 5e-324, 0.1, 1.0, 123456789012, 1E400]"),
                "2.5 -1234567.25 1e+22 5e-324 0.1 1.0 123456789012 inf");
    CHECK_EQUAL(*json::parse("1.7976931348623157e308").get<double>(), 1.7976931348623157e308);
    const Tensor tensor = Tensor::from_vector<double>(Shape(3), {1234567.5, 2, 0.25});
    CHECK_EQUAL(tensor.to_string(10), "[1234567.5, 2.0, 0.25]");
    std::ostringstream text;
    text.imbue(std::locale());
    text << tensor << ' ' << Shape(1000, 2000);
    CHECK_EQUAL(text.str(), "[1.23457e+06, 2.0, 0.25] 1000x2000");
    const auto refused = thrown_by<UnsupportedTensor>([] { Tensor::empty(Shape(1), DType::INT32).fill(2.5); });
    CHECK_EQUAL(std::string(refused.what()), "2.5 is no value of int32");
    CHECK_EQUAL(detail::format_real(1.5, 'f', 3), "1.500");
    // And the program has its locale again.
    if (std::getenv("TR_TEST_LOCALE")) CHECK_EQUAL(*std::localeconv()->decimal_point, ',');
}

TEST(value_of_every_double_is_the_word_that_reads_back_the_same) {
    CHECK_EQUAL(detail::real_word(1e16), "1e+16");
    CHECK_EQUAL(detail::real_word(1e15), "1000000000000000.0");
    CHECK_EQUAL(detail::real_word(1e-5), "1e-05");
    CHECK_EQUAL(detail::real_word(-0.0), "-0.0");
    for (const double number : {0.1, 1.0 / 3, 2.0 / 3 * 1e300, 4.9e-324, 123456.789, 9007199254740993.0}) {
        CHECK_EQUAL(detail::real_of(detail::real_word(number)), number);
    }
}

TEST(value_of_the_worker_s_lack_of_space_is_both_errors) {
    const std::string raw = R"({"seq":1,"command":"big","error":{"kind":"handler","type":"OutOfSpace","message":"full",)"
                            R"("traceback":"T","needed_nbytes":100,"free_nbytes":7}})";
    const auto raise = [&] {
        const detail::Response response = detail::decode_response(raw);
        std::rethrow_exception(detail::remote_error(response.command, *response.error));
    };
    const auto both = thrown_by<RemoteOutOfSpace>(raise);
    CHECK(both.needed_nbytes == 100 && both.free_nbytes == 7 && both.command == "big" && both.error_type == "OutOfSpace");
    CHECK_EQUAL(thrown_by<OutOfSpace>(raise).needed_nbytes, 100u);
    CHECK_EQUAL(thrown_by<RemoteError>(raise).remote_traceback, "T");
    CHECK(std::string(thrown_by<TRException>(raise).what()).find("full") != std::string::npos);
    CHECK(std::string(thrown_by<std::exception>(raise).what()).size() < 1000);
}

TEST(value_of_a_timeout_is_shown_as_it_was_given_and_short) {
    CHECK_EQUAL(detail::shown_ms(0.5), "0.5");
    CHECK_EQUAL(detail::shown_ms(-0.0), "0");
    CHECK_EQUAL(detail::shown_ms(0), "0");
    CHECK_EQUAL(detail::shown_ms(30), "30");
    CHECK_EQUAL(detail::shown_ms(1000.0 / 30), "33.33");
    CHECK_EQUAL(detail::shown_ms(999.97), "1000");
    CHECK_EQUAL(detail::shown_ms(1234567), "1234567");
    CHECK_EQUAL(detail::shown_ms(1e15), "unlimited");
}
