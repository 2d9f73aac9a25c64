// Tests of values by name: as arguments, as results, and as text.
#include <cmath>
#include <limits>
#include <vector>

#include "session.hpp"

namespace {

/// What the worker gets of these values, and gives back.
Values there_and_back(const Values& values) { return shared().fetch_values("named", values); }

}  // namespace

TEST(session_values_by_name_go_both_ways) {
    Ready& s = shared();
    const double huge = std::numeric_limits<double>::infinity();
    const Tensor sent = Tensor::full(Shape(2, 3), 4.0f);
    Tensor loan = s.empty<float>(Shape(5));
    loan.fill(6);
    const Value::List list{1, "two", 3.5, nullptr, false, loan, Value::List{sent, "deep"}};
    const Values back = there_and_back({{"tensor", sent},
                                        {"text", "a \"text\" of é, and\nmore"},
                                        {"whole", 5},
                                        {"least", std::numeric_limits<std::int64_t>::min()},
                                        {"most", std::numeric_limits<std::uint64_t>::max()},
                                        {"real", 0.1},
                                        {"rounded", 2.0},
                                        {"nan", std::nan("")},
                                        {"huge", huge},
                                        {"minus", -huge},
                                        {"yes", true},
                                        {"none", nullptr},
                                        {"list", list},
                                        {"empty", Value::List{}},
                                        {"a name, with a space", "x"}});
    CHECK(all_equal(back.at("tensor").get<Tensor>(), 4));
    CHECK(back.at("tensor").get<Tensor>().shape() == Shape(2, 3));
    CHECK(!back.at("tensor").get<Tensor>().is_writable());
    CHECK_EQUAL(back.at("text").get<std::string>(), "a \"text\" of é, and\nmore");
    CHECK_EQUAL(back.at("whole").get<int>(), 5);
    CHECK_EQUAL(back.at("least").get<std::int64_t>(), std::numeric_limits<std::int64_t>::min());
    CHECK_EQUAL(back.at("most").get<std::uint64_t>(), std::numeric_limits<std::uint64_t>::max());
    CHECK_EQUAL(back.at("real").get<double>(), 0.1);
    CHECK(!back.at("rounded").is<int>());  // it stays a real number
    CHECK(std::isnan(back.at("nan").get<double>()));
    CHECK_EQUAL(back.at("huge").get<double>(), huge);
    CHECK_EQUAL(back.at("minus").get<double>(), -huge);
    CHECK(back.at("yes").get<bool>());
    CHECK(back.at("none").is_none());
    CHECK(back.at("empty").get<Value::List>().empty());
    const Value::List& items = back.at("list").get<Value::List>();
    CHECK_EQUAL(items.at(0).get<long>(), 1);
    CHECK_EQUAL(items.at(1).get<std::string>(), "two");
    CHECK_EQUAL(items.at(2).get<float>(), 3.5f);
    CHECK(items.at(3).is_none() && !items.at(4).get<bool>());
    CHECK(all_equal(items.at(5).get<Tensor>(), 6));
    CHECK(all_equal(items.at(6).get<Value::List>().at(0).get<Tensor>(), 4));
    CHECK_EQUAL(back.at("a name, with a space").get<std::string>(), "x");
    CHECK_EQUAL(back.at("kinds").get<std::string>(),  // in the order of the names
                "str list float int list float int float NoneType float float ndarray str int bool");
    CHECK_EQUAL(back.size(), 16u);
}

TEST(session_values_by_name_reach_parameters_of_their_names) {
    Ready& s = shared();
    const Tensor points = Tensor::full(Shape(3), 2.0f);
    CHECK_EQUAL(s.fetch_response("scaled_sum", Values{{"points", points}, {"factor", 3}}), "18.0");
    const Value::List numbers{1, 2, 3};  // which the annotation makes a tensor
    CHECK_EQUAL(s.fetch_response("scaled_sum", Values{{"points", numbers}}), "6.0");
    CHECK_EQUAL(s.submit_response("scaled_sum", Values{{"points", points}}).get(), "6.0");
    CHECK(all_equal(s.calculate("scaled", Values{{"points", points}, {"factor", 3}}), 6));
    CHECK(all_equal(s.submit("scaled", Values{{"points", points}, {"factor", 4}}).get(), 8));
    CHECK(all_equal(s.fetch_tensors("scaled", Values{{"points", points}, {"factor", 5}}).at(0), 10));
    CHECK(all_equal(s.submit_tensors("scaled", Values{{"points", points}, {"factor", 6}}).get().at(0), 12));
    CHECK_EQUAL(s.fetch_values("summary", {points}).at("count").get<int>(), 3);  // by place, answered by name
    CHECK_EQUAL(s.submit_values("summary", {points}).get().at("count").get<int>(), 3);
    CHECK_EQUAL(s.submit_values("named", Values{{"x", 1}}).get().at("kinds").get<std::string>(), "int");
    CHECK_EQUAL(s.fetch_values("named").at("kinds").get<std::string>(), "");
    CHECK_EQUAL(s.submit_values("named").get().size(), 1u);
    s.send_request("named");
    CHECK_EQUAL(s.wait_for_values().size(), 1u);
    CHECK_EQUAL(thrown_by<RemoteError>([&] { s.fetch_values("scaled", Values{{"pionts", points}}); }).command, "scaled");
}

TEST(session_values_that_are_not_there_are_said) {
    Ready& s = shared();
    const auto words = thrown_by<BadMessage>([&] { s.fetch_values("named 5", Values{{"x", 1}}); });
    CHECK_EQUAL(words.detail, "5");
    thrown_by<BadMessage>([&] { s.fetch_values("named", Values{{"x", "\xff"}}); });
    CHECK(std::string(thrown_by<UnexpectedResponse>([&] { s.fetch_values("length abc"); }).what()).find("no values by name") !=
          std::string::npos);
    const auto named = thrown_by<UnexpectedResponse>([&] { s.calculate("summary", Tensor::ones(Shape(4))); });
    CHECK(std::string(named.what()).find("wait_for_values()") != std::string::npos);
    CHECK_EQUAL(s.wait_for_values().at("count").get<int>(), 4);  // it can still be taken
    const auto later = thrown_by<UnexpectedResponse>([&] { s.submit("summary", Tensor::ones(Shape(4))).get(); });
    CHECK(std::string(later.what()).find("submit_values()") != std::string::npos);
    const Values values = there_and_back({{"x", 300}, {"y", -1}, {"z", "text"}});
    CHECK_EQUAL(std::string(thrown_by<UnexpectedResponse>([&] { values.at("w"); }).what()),
                "there is no value 'w'; there are: kinds, x, y, z");
    CHECK_EQUAL(thrown_by<UnexpectedResponse>([&] { values.at("z").get<int>(); }).result, "a text");
    thrown_by<UnexpectedResponse>([&] { values.at("x").get<Tensor>(); });
    thrown_by<UnexpectedResponse>([&] { values.at("x").get<std::int8_t>(); });  // 300 does not fit
    thrown_by<UnexpectedResponse>([&] { values.at("y").get<unsigned>(); });
    thrown_by<UnexpectedResponse>([&] { values.at("x").get<bool>(); });
    CHECK_EQUAL(values.at("x").get<std::int16_t>(), 300);
    CHECK_EQUAL(values.at("y").get<double>(), -1.0);
}

TEST(session_values_of_a_bad_text_are_refused) {
    const std::vector<Tensor> one{Tensor::ones(Shape(1))};
    for (const char* text : {"", "[]", "5", "{", "{\"a\":{\"tensor\":1}}", "{\"a\":{\"tensor\":-1}}", "{\"a\":{\"tensor\":0.0}}",
                             "{\"a\":{\"float\":\"1\"}}", "{\"a\":{}}", "{\"a\":{\"tensor\":0,\"b\":0}}", "{\"a\":[{\"b\":1}]}",
                             "{\"a\":1,\"a\":2}"}) {
        thrown_by<BadMessage>([&] { detail::values_of_text(text, one); });
    }
    CHECK_EQUAL(detail::values_of_text("{\"a\":{\"tensor\":0}}", one).at("a").get<Tensor>().numel(), 1);
}
