import java.util.List;
import org.elasticsearch.xcontent.NamedXContentRegistry;
import org.elasticsearch.xcontent.ParseField;
import org.elasticsearch.xcontent.XContentParserConfiguration;
import org.elasticsearch.xcontent.XContentType;
import org.elasticsearch.xpack.core.ilm.ForceMergeAction;
import org.elasticsearch.xpack.core.ilm.LifecycleAction;
import org.elasticsearch.xpack.core.ilm.LifecyclePolicy;
import org.elasticsearch.xpack.core.ilm.LifecycleType;
import org.elasticsearch.xpack.core.ilm.ReadOnlyAction;
import org.elasticsearch.xpack.core.ilm.TimeseriesLifecycleType;

/** Parses and validates ILM policies (the bodies of their PUTs) as Elasticsearch does: a line for each says what came of it. */
class ParsePolicy {
    public static void main(String[] bodies) throws Exception {
        var names = new NamedXContentRegistry(List.of(
            new NamedXContentRegistry.Entry(
                LifecycleType.class, new ParseField(TimeseriesLifecycleType.TYPE), p -> TimeseriesLifecycleType.INSTANCE),
            new NamedXContentRegistry.Entry(LifecycleAction.class, new ParseField(ReadOnlyAction.NAME), ReadOnlyAction::parse),
            new NamedXContentRegistry.Entry(
                LifecycleAction.class, new ParseField(ForceMergeAction.NAME), ForceMergeAction::parse)));
        var configuration = XContentParserConfiguration.EMPTY.withRegistry(names);
        for (var body : bodies) {
            try (var parser = XContentType.JSON.xContent().createParser(configuration, body)) {
                parser.nextToken();
                parser.nextToken();
                parser.nextToken();
                LifecyclePolicy.parse(parser, "policy").validate();
                System.out.println("taken");
            } catch (IllegalArgumentException error) {
                System.out.println("refused: " + error.getMessage());
            }
        }
    }
}
